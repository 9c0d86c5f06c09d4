"""Metrics of one annotated pair and one displacement field.

Judged is what a registration delivers: labels are compared on the fixed image's own grid, moved by the transform that
is written. The moving label is sampled once, as linear one-hot, then 0.5 (merged SoI) or the largest (single labels).
Regularity is that of the field on the registration grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.geometry.resampling import pull_back_landmarks, pull_back_points, warp_labels
from istn_monai.geometry.sampling import sample
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.guidance import both_masks
from istn_monai.inferer import refinement_of
from istn_monai.io.landmarks import is_points, warn_unmatched
from istn_monai.metrics import (
    Metrics,
    box_of,
    field_metrics,
    image_metrics,
    inverse_consistency,
    jacobian_determinant,
    overlap,
)
from istn_monai.transforms.checks import reads_labels
from istn_monai.transforms.guidance import batched
from istn_monai.transforms.keys import POINT_KEYS
from istn_monai.transforms.landmarks import matched_in


def soi_values(soi_labels: Sequence[Sequence[int]] | None) -> list[int]:
    """All label values of the groups, sorted; [1] for a real-valued map, whose threshold is half its maximum."""
    return [1] if soi_labels is None else sorted({value for group in soi_labels for value in group})


def label_map(label: MetaTensor, soi_labels: Sequence[Sequence[int]] | None) -> Tensor:
    """``(1, 1, *S)``: label values as they are, a real-valued map scaled to a maximum of 1."""
    values = label.as_tensor()[None]
    if soi_labels is None:
        return values.float() / values.max()
    return values.round() if values.is_floating_point() else values


def merged_soi(labels: Tensor, soi_labels: Sequence[Sequence[int]] | None) -> Tensor:
    """What :func:`label_map` gives to 1 in any SoI and 0 elsewhere; a real-valued map as it is."""
    return labels if soi_labels is None else torch.isin(labels, labels.new_tensor(soi_values(soi_labels))).float()


def label_metrics(
    pair: Mapping[str, Any],
    ddf: Tensor,
    soi_labels: Sequence[Sequence[int]] | None,
    transform: WorldTransform | None = None,
) -> Metrics:
    """Dice, ASD and HD95 (mm) of the merged SoI and of each label, on the fixed image's own grid.

    Args:
        pair: preprocessed; moving and fixed label under ``*_label_original``, ``image`` on the registration grid.
        ddf: ``(1, D, *S)`` on the registration grid.
        soi_labels: groups of label values; None for real-valued maps.
        transform: fixed to moving world points before the initial alignment, of which the ddf is a sample; None
            interpolates the ddf, and beyond its grid continues its border.
    """
    moving, fixed = (pair[f"{side}_label_original"] for side in ("moving", "fixed"))
    grids = Grid.of(fixed), Grid.of(moving)
    if transform is None:
        points = pull_back_points(ddf, Grid.of(pair["image"]), *grids)
    else:
        points = transform.pull_back_points(*grids).float()
    values = soi_values(soi_labels)
    moving_map, fixed_map = label_map(moving, soi_labels), label_map(fixed, soi_labels)[0, 0]
    warped_soi = sample(merged_soi(moving_map, soi_labels), points, padding_mode="zeros")[0, 0] > 0.5
    fixed_soi = merged_soi(fixed_map, soi_labels) > 0.5
    seen = warped_soi | fixed_soi
    box = box_of(seen if seen.any() else ~seen)  # nothing is to be seen elsewhere, and a brain is large
    spacing = Grid.of(fixed).spacing
    metrics = {f"{k}_merged": v for k, v in overlap(warped_soi[box], fixed_soi[box], spacing).items()}
    if soi_labels is None:
        return metrics | {"dice_labels": metrics["dice_merged"]}
    warped_labels = warp_labels(moving_map, points[(..., *box)], values)[0, 0]
    for value in values:
        single = overlap(warped_labels == value, fixed_map[box] == value, spacing)
        metrics |= {f"{name}_{value}": number for name, number in single.items()}
    metrics["dice_labels"] = statistics([metrics[f"dice_{value}"] for value in values])["mean"]
    return metrics


def landmark_metrics(pair: Mapping[str, Any], ddf: Tensor, transform: WorldTransform | None = None) -> Metrics:
    """Target registration error in mm, mean and median over a pair's landmarks; nothing if it has no landmark files.

    The distance of each landmark of the moving image from where the fixed one of the same name is mapped to.
    """
    files = [str(pair.get(key, "")) for key in POINT_KEYS]
    if not all(map(is_points, files)):
        return {}
    moving, fixed = matched_in(files, ddf.shape[1])
    if transform is None:
        found = pull_back_landmarks(ddf, Grid.of(pair["image"]), fixed.positions.T)
    else:
        found = transform.transform_points(fixed.positions.T)
    if "initial_alignment" in pair:
        found = map_points(torch.as_tensor(pair["initial_alignment"], dtype=torch.float64), found)
    distances = (found - moving.positions.T).norm(dim=0)
    return {"tre": distances.mean().item(), "tre_median": distances.median().item()}


def likeness_metrics(pair: Mapping[str, Any], ddf: Tensor) -> Metrics:
    """How alike the images are on the registration grid, where they count, see :func:`image_metrics`."""
    moving, fixed = pair["image"].as_tensor()[None].to(ddf).chunk(2, dim=1)
    return image_metrics(moving, fixed, ddf, both_masks(batched(pair), fixed))


def pair_metrics(
    pair: Mapping[str, Any],
    ddf: Tensor,
    soi_labels: Sequence[Sequence[int]] | None,
    transform: WorldTransform | None = None,
) -> Metrics:
    """All metrics of one pair and one registration; arguments as in :func:`label_metrics`."""
    labels = label_metrics(pair, ddf, soi_labels, transform) if reads_labels(soi_labels) else {}
    field = likeness_metrics(pair, ddf) | field_metrics(ddf[0], Grid.of(pair["image"]).spacing)
    return labels | landmark_metrics(pair, ddf, transform) | field


def jacobian_of(displacement: MetaTensor) -> MetaTensor:
    """``(1, *S)`` float32: the Jacobian determinant of ``x + u(x)``, of displacements ``(D, *S)`` in mm.

    Above 1 the moving image shrinks there, below it grows; 0 and less is folded.
    """
    affine = affine_of(displacement)
    voxels = torch.tensordot(torch.linalg.inv(affine[:-1, :-1]), displacement.as_tensor().cpu().double(), dims=1)
    return with_affine(jacobian_determinant(voxels[None]).float(), affine, displacement)


def consistency(pair: Mapping[str, Any]) -> dict[str, float]:
    """See :func:`istn_monai.metrics.inverse_consistency`; nothing where the other way round was not registered."""
    refinement = refinement_of(pair["pred"])
    if refinement is None or refinement.back_ddf is None:
        return {}
    ddf, back = (torch.as_tensor(field)[None].cpu() for field in (pair["pred"], refinement.back_ddf))
    return inverse_consistency(ddf, back, Grid.of(pair["image"]).spacing)


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over pairs, median and number of what is not nan."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not known.size:
        return {"mean": float("nan"), "std": float("nan"), "median": float("nan"), "n": 0}
    return {
        "mean": float(known.mean()), "std": float(known.std()), "median": float(np.median(known)), "n": len(known)
    }  # fmt: skip


def warn_of_landmarks(pair: Mapping[str, Any], number: int) -> None:
    """Warns of landmarks of a pair that nothing is measured at: of one side alone, or names that one file lacks."""
    given = [key for key in POINT_KEYS if key in pair]
    if len(given) == 1:
        (other,) = set(POINT_KEYS) - set(given)
        warnings.warn(f"pair {number} has {given[0]} without {other}: no landmarks are measured", stacklevel=2)
    elif given and all(is_points(str(pair[key])) for key in given):
        warn_unmatched(*(str(pair[key]) for key in given))
