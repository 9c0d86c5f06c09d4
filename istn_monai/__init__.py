"""Image-and-spatial transformer networks (Lee et al., MICCAI 2019) as MONAI components.

Where things are:

- :mod:`istn_monai.transformation` (what all share), :mod:`istn_monai.spatial` (affine, compositions),
  :mod:`istn_monai.bspline`: parameters to displacement field
- :mod:`istn_monai.warp`: sampling; :mod:`istn_monai.world`: affines, registration grid;
  :mod:`istn_monai.alignment`: initial alignment
- :mod:`istn_monai.networks`: ITN, STN, ISTN; :mod:`istn_monai.losses`: STN-u, STN-s, ISTN-e, ISTN-i
- :mod:`istn_monai.refinement`: test-time refinement for the one pair in hand
- :mod:`istn_monai.loading`: images from files; :mod:`istn_monai.data`: datalists; :mod:`istn_monai.dictionary`: MONAI
  dictionary transforms before a network, :mod:`istn_monai.postprocessing`: and after; :mod:`istn_monai.augmentation`:
  random deformation
- :mod:`istn_monai.points`: landmark files; :mod:`istn_monai.landmarks`: what they say as structures of interest
- :mod:`istn_monai.synthetic`: the paper's toy
- :mod:`istn_monai.metrics`, :mod:`istn_monai.evaluation`: figures
- :mod:`istn_monai.hosts`, :mod:`istn_monai.host_training`: the bundle served by MONAI Label and the like
- :mod:`istn_monai.checks`, :mod:`istn_monai.settings`, :mod:`istn_monai.training`, :mod:`istn_monai.inference`: what
  the bundle's configs call; :mod:`istn_monai.distributed`: in several processes
- :mod:`istn_monai.register`: registration of files, and :class:`istn_monai.RegisterISTNd` for any ``Compose``
"""

from istn_monai import (
    alignment,
    augmentation,
    checks,
    data,
    dictionary,
    distributed,
    evaluation,
    host_training,
    hosts,
    inference,
    landmarks,
    loading,
    postprocessing,
    refinement,
    settings,
    training,
    world,
)
from istn_monai.bspline import BSplineTransformation
from istn_monai.layers import SoftClamp
from istn_monai.losses import DiceMSELoss, ISTNLoss
from istn_monai.networks import ISTN, ITN, STN, BackboneITN, DisplacementNetwork, ISTNOutput, PyramidSTN
from istn_monai.register import RegisterISTNd, Registration
from istn_monai.spatial import (
    AffineTransformation,
    CompositeTransformation,
    DenseTransformation,
    spatial_transformation,
)
from istn_monai.transformation import Transformation
from istn_monai.warp import Warp

__version__ = "0.1.0"
__all__ = [
    "AffineTransformation", "BSplineTransformation", "BackboneITN", "CompositeTransformation", "DenseTransformation",
    "DiceMSELoss", "DisplacementNetwork", "ISTN", "ISTNLoss", "ISTNOutput", "ITN", "PyramidSTN", "RegisterISTNd",
    "Registration", "STN", "SoftClamp", "Transformation", "Warp", "alignment", "augmentation", "checks", "data",
    "dictionary", "distributed", "evaluation", "host_training", "hosts", "inference", "landmarks", "loading",
    "postprocessing", "refinement", "settings", "spatial_transformation", "training", "world",
]  # fmt: skip
