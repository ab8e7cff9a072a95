"""The training stage: manifest, cache, augmentation, losses, strategies, loop and export. Inference needs none of it."""
