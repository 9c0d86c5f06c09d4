"""The pairs of ``multimodal.py``: brains beside averages of other contrasts, and an average moved in a known way.

Each folder of a pair has ``moving.nii.gz``, ``fixed.nii.gz`` and label maps of both, as ``peer_methods.py`` reads them;
the moving image with an affine that joins the centers of mass. A known motion adds ``truth.pt``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from monai.data import MetaTensor
from peers import LOAD, read_field, save
from scipy.ndimage import binary_closing, binary_fill_holes
from torch import Tensor

from istn_monai import spatial_transformation
from istn_monai.alignment import initial_alignment
from istn_monai.geometry.grids import Grid, registration_grid
from istn_monai.geometry.sampling import sample
from istn_monai.linear_registration import Side, coarse
from istn_monai.metrics import folding_fraction, jacobian_determinant, sd_log_jacobian

CONTRASTS = ("t1", "t2", "pd", "epi")
LABELS, MASK = "mni_labels_1p5mm.nii.gz", "mni_intracranial_mask_1p5mm.nii.gz"
VOXEL = 2.0  # mm, that of the averages
BORDER = 6  # voxels around a brain, and around a head that is moved
#: of a motion: degrees, mm, largest factor, control spacing and range of the largest displacement of B-splines in mm
TURN, SHIFT, SCALE, CONTROL, BENT = 10.0, 10.0, 1.1, 40.0, (4.0, 6.0)


def subjects_of(data: Path) -> list[str]:
    """The brain data's test subjects."""
    items = json.loads((data / "brain" / "pairs_100.json").read_text(encoding="utf-8"))["testing"]
    return sorted({Path(item["moving_image"]).name.split(".")[0] for item in items})


def at_points(image: MetaTensor, grid: Grid, mode: str = "bilinear") -> MetaTensor:
    """An image ``(1, *S)`` at the voxels of a grid; 0 outside."""
    places = Grid.of(image).voxels(grid.points())[None].float()
    return MetaTensor(sample(image.as_tensor()[None].float(), places, mode, "zeros")[0], affine=grid.affine)


def cropped(grid: Grid, inside: Tensor) -> Grid:
    """The part of a grid that holds what is true in ``(*S)``, with a border."""
    found = inside.nonzero()
    low = (found.amin(0) - BORDER).clamp_min(0)
    high = torch.minimum(found.amax(0) + BORDER + 1, torch.tensor(inside.shape))
    affine = grid.affine.clone()
    affine[:-1, -1] += affine[:-1, :-1] @ low.double()
    return Grid(tuple((high - low).tolist()), affine)


def brain_of(labels: MetaTensor) -> MetaTensor:
    """The brain that labels ``(1, *S)`` cover, with the sulci between them: 1 inside."""
    inside = binary_fill_holes(binary_closing(labels[0].numpy() > 0, iterations=2))
    return MetaTensor(torch.as_tensor(inside, dtype=torch.float32)[None], affine=labels.affine)


def put(folder: Path, moving: MetaTensor, fixed: MetaTensor, labels: tuple[MetaTensor, MetaTensor]) -> None:
    """Writes a pair, the moving image and its labels where the centers of mass are one."""
    folder.mkdir(parents=True, exist_ok=True)
    start = Grid.of(moving).aligned(initial_alignment("moments", moving, fixed)).affine
    sides = {"moving": (moving, labels[0], start), "fixed": (fixed, labels[1], Grid.of(fixed).affine)}
    for role, (image, label, affine) in sides.items():
        save(image.as_tensor().float(), affine, folder / f"{role}.nii.gz")
        save(label.as_tensor().round().to(torch.int16), affine, folder / f"{role}_label.nii.gz")


def write_subject(folder: Path, data: Path, subject: str, contrast: str) -> None:
    """A T1 brain, and the brain of an average, both in voxels of 2 mm."""
    there = data / "multimodal"
    labels = LOAD(there / LABELS)
    brain = brain_of(labels)
    average = LOAD(there / f"mni_{contrast}.nii.gz")
    grid = cropped(Grid.of(average), at_points(brain, Grid.of(average), "nearest")[0] > 0)
    fixed = at_points(average, grid)
    fixed = MetaTensor(fixed.as_tensor() * at_points(brain, grid, "nearest").as_tensor(), affine=grid.affine)
    image, own = (LOAD(data / "brain" / kind / f"{subject}.nii.gz") for kind in ("images", "labels"))
    side = coarse(Side(image.as_tensor().float(), Grid.of(image)), VOXEL)
    moving = MetaTensor(side.values, affine=side.grid.affine)
    put(folder, moving, fixed, (at_points(own, side.grid, "nearest"), at_points(labels, grid, "nearest")))


def known_motion(grid: Grid, inside: Tensor, seed: int) -> Tensor:
    """Where a random motion finds the voxels of a grid, ``(3, *S)`` in mm, RAS.

    Args:
        grid: along R, A and S.
        inside: ``(*S)``, where the B-splines' largest displacement counts.
        seed: of the motion.
    """
    random = torch.Generator().manual_seed(seed)
    linear = spatial_transformation("affine", grid.spatial_size, grid.spacing)
    turn, shift = (torch.nn.functional.normalize(torch.randn(3, generator=random), dim=0) for _ in range(2))
    scale, axes = (torch.rand(3, generator=random) * 2 - 1 for _ in range(2))
    wanted = torch.cat([SHIFT * shift, math.radians(TURN) * turn, math.log(SCALE) * scale, 0.5 * axes])
    affine = linear(torch.atanh(wanted / linear.bounds)[None])[0]
    spline = spatial_transformation("bspline", grid.spatial_size, grid.spacing, CONTROL, max_displacement=None)
    bent = spline(torch.randn(1, spline.num_parameters, generator=random))[0]
    lengths = bent.norm(dim=0)[inside] * min(grid.spacing)
    largest = BENT[0] + (BENT[1] - BENT[0]) * torch.rand((), generator=random)
    ddf = (affine + bent * largest / lengths.max()).double()
    return grid.points() + torch.tensordot(grid.affine[:3, :3], ddf, dims=1)


def write_motion(folder: Path, data: Path, seed: int, contrast: str, stripped: bool = False) -> None:
    """The T1 average, moved, and an average that is where it was, in voxels of 2 mm: heads, or without the skull."""
    there = data / "multimodal"
    average, fixed = (LOAD(there / f"mni_{name}.nii.gz") for name in ("t1", contrast))
    mask = LOAD(there / MASK)
    here = Grid.of(fixed)
    grid = registration_grid(here, [n + 2 * BORDER for n in here.spatial_size], min(here.spacing))
    truth = known_motion(grid, at_points(mask, grid, "nearest")[0] > 0, seed)
    images = []
    for image, mode in ((average, "bilinear"), (mask, "nearest")):
        places = Grid.of(image).voxels(truth)[None].float()
        moved = sample(image.as_tensor()[None].float(), places, mode, "zeros")[0]
        images.append(MetaTensor(moved, affine=grid.affine))
    masks = images[1], at_points(mask, here, "nearest")
    if stripped:
        images[0], fixed = (
            MetaTensor(image.as_tensor() * inside.as_tensor(), affine=image.affine)
            for image, inside in zip((images[0], fixed), masks, strict=True)
        )
    put(folder, images[0], fixed, masks)
    torch.save(truth.float(), folder / "truth.pt")


def motion_error(file: Path | None, folder: Path) -> dict[str, float]:
    """How far from a known motion a displacement field is, in the fixed image's mask; None for no displacement.

    Returns:
        ``error_mm``, ``error_95_mm`` and ``error_largest_mm``: mean, 95 % and largest, of the fixed points that the
        field, and the known motion after it, ought to bring back to themselves; ``sdlogj`` and ``folding``, of the
        field on the whole fixed grid.
    """
    images = {role: LOAD(folder / f"{role}.nii.gz") for role in ("moving", "fixed", "fixed_label")}
    fixed, moving = Grid.of(images["fixed"]), Grid.of(images["moving"])
    field = torch.zeros(3, *fixed.spatial_size, dtype=torch.float64) if file is None else read_field(file, fixed)
    places = moving.voxels(fixed.points() + field)[None].float()
    truth = torch.load(folder / "truth.pt", weights_only=True)
    found = sample(truth[None], places)[0]  # what each voxel of the moving image shows
    errors = (found - fixed.points().float()).norm(dim=0)[images["fixed_label"].as_tensor()[0] > 0]
    ddf = torch.tensordot(torch.linalg.inv(fixed.affine[:3, :3]), field, dims=1)
    determinant = jacobian_determinant(ddf[None])
    return {
        "error_mm": errors.mean().item(),
        "error_95_mm": errors.quantile(0.95).item(),
        "error_largest_mm": errors.max().item(),
        "sdlogj": sd_log_jacobian(determinant).item(),
        "folding": folding_fraction(determinant).item(),
    }
