"""Makes ``import torchvision`` work beside a PyTorch without CUDA.

PyPI's torchvision looks for these operators, which its CUDA library defines; MONAI Label imports torchvision and calls
neither. ``start.py`` puts this folder on the path where that import fails; Python imports a module of this name first.
"""

import torch

library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
