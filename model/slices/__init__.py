"""Single CT slices classified as centrilobular, panlobular or paraseptal emphysema or normal tissue.

After Sreeja et al., "Automated Classification of Emphysema Using Convolutional Neural Networks": four architectures, an
ImageNet base under a small head (Keras on torch), compared on 447 slices. Two networks in plain torch are added.
"""

import os
from typing import Literal, get_args

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it when it is first imported

PaperArchitecture = Literal["inception_v3", "resnet50", "efficientnet", "simple_cnn"]
PAPER_ARCHITECTURES: tuple[PaperArchitecture, ...] = get_args(PaperArchitecture)
"""Those of the paper's Table I, in Keras; the first is the one that it puts behind its page."""

LungArchitecture = Literal["texture", "residual"]
LUNG_ARCHITECTURES: tuple[LungArchitecture, ...] = get_args(LungArchitecture)
"""Those that are added, in plain torch: early ImageNet features pooled by region, and a small residual network from scratch."""

ArchitectureName = PaperArchitecture | LungArchitecture
ARCHITECTURES: tuple[ArchitectureName, ...] = (*PAPER_ARCHITECTURES, *LUNG_ARCHITECTURES)

TITLES = {
    "inception_v3": "InceptionV3",
    "resnet50": "ResNet50",
    "efficientnet": "EfficientNet",
    "simple_cnn": "Simple CNN",
    "residual": "small residual network (ours)",
    "texture": "texture network (ours)",
}
"""Names of the architectures in tables."""

PART_NAMES = ("image", *(f"patient-{number}" for number in range(1, 6)))
"""The splits of a comparison: the paper's by image, and five folds by patient."""

CLASSES = ("CLE", "PLE", "PSE", "NT")
"""Folder names, and the order of all probabilities: centrilobular, panlobular, paraseptal, normal tissue."""

CLASS_NAMES = {
    "CLE": "centrilobular emphysema",
    "PLE": "panlobular emphysema",
    "PSE": "paraseptal emphysema",
    "NT": "normal tissue",
}
