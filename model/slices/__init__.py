"""Single HRCT slices classified as centrilobular, panlobular or paraseptal emphysema or normal tissue, by transfer learning.

After Sreeja et al., "Automated Classification of Emphysema Using Convolutional Neural Networks": four architectures, an
ImageNet base under a small head, compared on 447 slices. Keras runs on torch, which the rest of the package needs anyway.
"""

import os
from typing import Literal, get_args

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it when it is first imported

ArchitectureName = Literal["inception_v3", "resnet50", "efficientnet", "simple_cnn"]
ARCHITECTURES: tuple[ArchitectureName, ...] = get_args(ArchitectureName)
"""Those of the paper's Table I; the first is the one that it puts behind its page."""

CLASSES = ("CLE", "PLE", "PSE", "NT")
"""Folder names, and the order of all probabilities: centrilobular, panlobular, paraseptal, normal tissue."""

CLASS_NAMES = {
    "CLE": "centrilobular emphysema",
    "PLE": "panlobular emphysema",
    "PSE": "paraseptal emphysema",
    "NT": "normal tissue",
}
