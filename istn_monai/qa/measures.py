"""What a QA page measures and shows of one registered pair, on its registration grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from istn_monai.frozen import FrozenITN
from istn_monai.geometry.grids import Grid, map_points, within
from istn_monai.geometry.sampling import voxel_grid, warp
from istn_monai.guidance import both_masks
from istn_monai.inferer import refinement_of
from istn_monai.metrics import Metrics, field_metrics, image_metrics, inverse_consistency, jacobian_determinant
from istn_monai.refinement import RefinementReport
from istn_monai.transforms.guidance import batched
from istn_monai.transforms.keys import IMAGE_KEYS, MAPS

TINY = 1e-6  # keeps fractions of nothing finite


@dataclass(frozen=True)
class RegisteredPair:
    """A registered pair on its registration grid ``*S``, on the CPU.

    Attributes:
        names: of the moving and the fixed file.
        moving: ``(C, *S)`` in [0, 1], not warped.
        fixed: likewise.
        moving_representation: M' ``(K, *S)``, not warped.
        fixed_representation: F' ``(K, *S)``.
        one_pass: ddf ``(D, *S)`` in voxels, as the network predicts it.
        ddf: the result, ``(D, *S)`` in voxels; the same without a refinement.
        spacing: of the grid in mm.
        covered: ``(*S)``, where the result finds a point of the moving image.
        viewed: ``(*S)``, where the fixed image has voxels.
        refinement: what the refinement did; None without one, and for one of 0 steps.
        kind: what the representations are: "mask" (an ITN's, of structures), "map" (an ITN's, of real-valued maps
            such as landmarks), or "image" (there is no ITN).
        masks: of the moving and the fixed image, ``(1, 1, *S)`` of 0 and 1: where they count.
        back: the ddf ``(D, *S)`` of the other way round; None if that was not registered.
    """

    names: tuple[str, str]
    moving: Tensor
    fixed: Tensor
    moving_representation: Tensor
    fixed_representation: Tensor
    one_pass: Tensor
    ddf: Tensor
    spacing: tuple[float, ...]
    covered: Tensor
    viewed: Tensor
    refinement: RefinementReport | None
    kind: str
    masks: tuple[Tensor, Tensor] | None = None
    back: Tensor | None = None

    def warped(self, image: Tensor, ddf: Tensor) -> Tensor:
        """``(C, *S)`` of the moving side where ``ddf`` takes it."""
        return warp(image[None], ddf[None])[0]

    @cached_property
    def guessed(self) -> bool:
        """Whether one pass is a stage of its own: without a network it is where the pair began."""
        return self.refinement is None or self.kind != "image" or bool(self.one_pass.any())

    @cached_property
    def determinant(self) -> Tensor:
        """``(*S)``: the Jacobian determinant of the result, computed once."""
        return jacobian_determinant(self.ddf[None])[0]


def registered_pair(pair: Mapping[str, Any], network: nn.Module, soi_labels: Any = ((1,),)) -> RegisteredPair:
    """What inference left of a pair, as the QA page needs it.

    Args:
        pair: after pre- and postprocessing: ``image``, ``pred``, both representations, and the images as they were
            before they went onto the grid, under ``ORIGINAL_KEYS``.
        network: a :class:`istn_monai.networks.DisplacementNetwork` (or ISTN) that made it.
        soi_labels: groups of label values that it was trained on; None for real-valued maps.
    """
    istn = getattr(network, "istn", network)
    refinement = refinement_of(pair["pred"])
    plain = {key: cpu(pair[key]) for key in ("image", "pred", "moving_representation", "fixed_representation")}
    originals = [pair[f"{key}_original"] for key in IMAGE_KEYS]
    one_pass = plain["pred"]
    if refinement is not None:
        with torch.no_grad():
            theta = refinement.theta_start[None].to(next(istn.parameters()).device)
            one_pass = cpu(istn.transformation.resized(one_pass.shape[1:])(theta)[0])
    grid = Grid.of(pair["image"])
    voxels = voxel_grid(one_pass.shape[1:], one_pass)
    covered, viewed = (
        seen_by(image, grid, points) for image, points in zip(originals, (voxels + plain["pred"], voxels), strict=True)
    )
    moving, fixed = plain["image"].chunk(2)
    return RegisteredPair(
        names=(file_name(originals[0], "moving"), file_name(originals[1], "fixed")),
        moving=moving,
        fixed=fixed,
        moving_representation=plain["moving_representation"],
        fixed_representation=plain["fixed_representation"],
        one_pass=one_pass,
        ddf=plain["pred"],
        spacing=grid.spacing,
        covered=covered,
        viewed=viewed,
        refinement=refinement.report if refinement is not None and refinement.report.refined else None,
        kind=pair.get(MAPS) or kind_of(istn, soi_labels),
        masks=both_masks(batched(pair), fixed[None]),
        back=None if refinement is None or refinement.back_ddf is None else cpu(refinement.back_ddf),
    )


def kind_of(istn: nn.Module, soi_labels: Any) -> str:
    """What a network's own representations are, see :class:`RegisteredPair`."""
    if not istn.has_itn or isinstance(istn.itn, FrozenITN):
        return "image"
    return "map" if soi_labels is None else "mask"


def cpu(value: Tensor) -> Tensor:
    """A plain float tensor on the CPU."""
    return convert_to_tensor(value, track_meta=False, device="cpu").float()


def file_name(image: Tensor, default: str) -> str:
    """The name of the file that an image came from."""
    return Path(str(getattr(image, "meta", {}).get("filename_or_obj") or default)).name


def seen_by(image: MetaTensor, grid: Grid, points: Tensor) -> Tensor:
    """``(*S)``: which points ``(D, *S)``, in voxels of ``grid``, lie in an image."""
    own = Grid.of(image)
    return within(map_points(grid.to(own), points.double())[None], own.spatial_size)[0, 0]


def largest_slices(soi: Tensor) -> list[int]:
    """For each axis of structures ``(K, *S)``, the index of the slice that holds most of them."""
    axes = range(1, soi.ndim)
    return [int(soi.sum([0, *(other for other in axes if other != axis)]).argmax()) for axis in axes]


def measure(pair: RegisteredPair) -> Metrics:
    """The metrics that :func:`istn_monai.qa.rules.traffic_light` judges; what a pair does not have is absent."""
    field = field_metrics(pair.ddf, pair.spacing, pair.determinant)
    structure = common_metrics(pair) if pair.kind == "image" else structure_metrics(pair)
    return (
        field
        | structure
        | likeness_metrics(pair)
        | refinement_metrics(pair.refinement, pair.kind)
        | both_ways_metrics(pair)
    )


def both_ways_metrics(pair: RegisteredPair) -> Metrics:
    """See :func:`istn_monai.metrics.inverse_consistency`; nothing where the other way round was not registered."""
    if pair.back is None:
        return {}
    structures = None if pair.kind == "image" else pair.fixed_representation.clamp(0, 1).amax(0)
    return inverse_consistency(pair.ddf[None], pair.back[None], pair.spacing, structures)


def likeness_metrics(pair: RegisteredPair) -> Metrics:
    """``lncc``, the squared local correlation of the images, and ``lncc_change``, what a refinement changed of it."""

    def of(ddf: Tensor) -> float:
        """The correlation."""
        return image_metrics(pair.moving[None], pair.fixed[None], ddf[None], pair.masks)["lncc"]

    lncc = of(pair.ddf)
    return {"lncc": lncc} if pair.refinement is None else {"lncc": lncc, "lncc_change": lncc - of(pair.one_pass)}


def refinement_metrics(refinement: RefinementReport | None, kind: str = "mask") -> Metrics:
    """What became of the objective: its start, end and their ratio; and ``at_bound``. ``kind`` is the pair's.

    The ratio is that of the structures' term, ``objective``. An objective without terms is of the representations
    alone, of structures too where an ITN made them; any other ratio is of the whole, ``objective_images``. Nothing
    without a refinement, or for one of 0 steps.
    """
    if refinement is None or not refinement.refined:
        return {}
    of_structures = "structures" in refinement.terms or (not refinement.terms and kind != "image")
    start, end = refinement.objective_start, refinement.objective_end
    metrics = {"objective_start": start, "objective_end": end, "at_bound": refinement.at_bound}
    start, end = refinement.terms.get("structures", (start, end))
    return metrics | ({"objective" if of_structures else "objective_images": end / start} if start > 0 else {})


def common_metrics(pair: RegisteredPair) -> Metrics:
    """How alike the images are, where both have voxels that count, and how much of the smaller one that is."""
    covered, viewed = pair.covered, pair.viewed
    if pair.masks is not None:
        moving, fixed = (mask[0] for mask in pair.masks)
        covered, viewed = covered & (pair.warped(moving, pair.ddf)[0] > 0.5), viewed & (fixed[0] > 0.5)
    common = covered & viewed
    smaller = torch.minimum(covered.sum(), viewed.sum())  # crops of one anatomy differ in size
    metrics = {"coverage": (common.sum() / smaller.clamp(min=1)).item()}
    if common.sum() > 1:
        values = [image[:, common].flatten() for image in (pair.warped(pair.moving, pair.ddf), pair.fixed)]
        metrics["correlation"] = torch.corrcoef(torch.stack(values))[0, 1].nan_to_num().item()
    return metrics


def structure_metrics(pair: RegisteredPair) -> Metrics:
    """What the representations hold, and how well they agree."""
    moving, fixed = (r.clamp(0, 1) for r in (pair.moving_representation, pair.fixed_representation))
    volumes = [r.flatten(1).sum(1) + TINY for r in (moving, fixed)]
    ratio = (volumes[0] / volumes[1]).log().abs().max().exp()
    weights = fixed.sum(0)
    metrics = {
        "overlap_one_pass": soft_overlap(pair.warped(moving, pair.one_pass), fixed),
        "structure": min(r.flatten(1).amax(1).min().item() for r in (moving, fixed)),
        "volume_ratio": ratio.item(),
        "coverage": ((weights * pair.covered).sum() / (weights.sum() + TINY)).item(),
    }
    if pair.refinement:
        metrics["overlap"] = soft_overlap(pair.warped(moving, pair.ddf), fixed)
    if pair.kind == "mask":
        metrics["ambiguity"] = max(ambiguity(moving), ambiguity(fixed))
    return metrics


def soft_overlap(moving: Tensor, fixed: Tensor) -> float:
    """Dice of two representations ``(K, *S)`` in [0, 1] without a threshold, the lowest of all channels."""
    both = torch.minimum(moving, fixed).flatten(1).sum(1)
    return (2 * both / (moving.flatten(1).sum(1) + fixed.flatten(1).sum(1) + TINY)).min().item()


def ambiguity(representation: Tensor) -> float:
    """``sum r (1 - r) / sum r``: 0 if all values are 0 or 1; for a uniform value v it is 1 - v. 1 for nothing."""
    total = representation.sum()
    return ((representation * (1 - representation)).sum() / total).item() if total > TINY else 1.0
