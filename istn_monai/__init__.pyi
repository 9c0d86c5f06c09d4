"""The public names, for editors and type checkers, which do not see names that are loaded on demand."""

from istn_monai.frozen import FrozenITN as FrozenITN
from istn_monai.geometry.affine import AffineTransformation as AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation as BSplineTransformation
from istn_monai.geometry.composite import CompositeTransformation as CompositeTransformation
from istn_monai.geometry.composite import spatial_transformation as spatial_transformation
from istn_monai.geometry.dense import DenseTransformation as DenseTransformation
from istn_monai.geometry.grids import Grid as Grid
from istn_monai.geometry.sampling import Warp as Warp
from istn_monai.geometry.sampling import warp as warp
from istn_monai.geometry.svf import SVFTransformation as SVFTransformation
from istn_monai.geometry.transformation import Transformation as Transformation
from istn_monai.geometry.world_transform import WorldTransform as WorldTransform
from istn_monai.geometry.world_transform import world_transform as world_transform
from istn_monai.inferer import RefineInferer as RefineInferer
from istn_monai.io.itk_transforms import read_transform as read_transform
from istn_monai.io.itk_transforms import write_transform as write_transform
from istn_monai.io.landmarks import Points as Points
from istn_monai.io.landmarks import read_points as read_points
from istn_monai.io.landmarks import write_points as write_points
from istn_monai.layers import SoftClamp as SoftClamp
from istn_monai.losses import DiceCrossEntropyLoss as DiceCrossEntropyLoss
from istn_monai.losses import DiceMSELoss as DiceMSELoss
from istn_monai.losses import ISTNLoss as ISTNLoss
from istn_monai.network_settings import NetworkSettings as NetworkSettings
from istn_monai.networks import ISTN as ISTN
from istn_monai.networks import ITN as ITN
from istn_monai.networks import BackboneITN as BackboneITN
from istn_monai.networks import DisplacementNetwork as DisplacementNetwork
from istn_monai.networks import ISTNOutput as ISTNOutput
from istn_monai.networks import SegmentationITN as SegmentationITN
from istn_monai.refinement import Refiner as Refiner
from istn_monai.registration import RegisterISTNd as RegisterISTNd
from istn_monai.registration import Registration as Registration
from istn_monai.stn import STN as STN
from istn_monai.stn import PyramidSTN as PyramidSTN
from istn_monai.transforms.augmentation import RandDeformd as RandDeformd
from istn_monai.transforms.contrast import RandContrastMapd as RandContrastMapd
from istn_monai.transforms.contrast import RandImageFromLabelsd as RandImageFromLabelsd
from istn_monai.transforms.guidance import Guidanced as Guidanced
from istn_monai.transforms.landmarks import AddLandmarkChannelsd as AddLandmarkChannelsd
from istn_monai.transforms.postprocessing import Representd as Representd
from istn_monai.transforms.postprocessing import WarpPaird as WarpPaird
from istn_monai.transforms.preprocessing import CheckPaird as CheckPaird
from istn_monai.transforms.preprocessing import ConcatPaird as ConcatPaird
from istn_monai.transforms.preprocessing import InitialAlignmentd as InitialAlignmentd
from istn_monai.transforms.preprocessing import LoadPaird as LoadPaird
from istn_monai.transforms.preprocessing import NormalizeIntensityRanged as NormalizeIntensityRanged
from istn_monai.transforms.preprocessing import SoIGroupsd as SoIGroupsd
from istn_monai.transforms.registration_grid import RegistrationGridd as RegistrationGridd
from istn_monai.transforms.representations import RepresentationMapsd as RepresentationMapsd

__version__: str
__all__: list[str]
