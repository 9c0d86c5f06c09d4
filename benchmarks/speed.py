"""Times the parts that registration spends its time in, and registers real pairs with them.

    python benchmarks/speed.py [--threads 2] [--repeats 7] [--device cpu] [--output FILE]

Fields and Warp are compared with whatever computes the same: a dense transposed convolution, MONAI, and deepali
(``hf-deepali``) where it is installed. Before it is timed each candidate's result is compared with ours; one that
differs makes the script fail, after it has written its file.

deepali's lattice begins at the first voxel, ours is centered on the grid: on a grid of whole cells both are the same.
So deepali's field is compared with ours on the next grid of whole cells, cropped to the size. The work is the same, but
for one more control point along an axis whose size is no multiple of the spacing. Its displacements are in a cube
[-1, 1] and in the order x, y, z; that they become voxels is not timed.

Registration uses the bundle's preprocessing and shipped weights on test pairs of the hippocampus data in
``ISTN_DATA_DIR`` (default ``../shared/data``), and smooth random images, without Dice, where there are none.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import fire
import monai
import torch
from common import OURS, ROOT, SEED, Candidate, Row, compare, random
from monai.bundle import ConfigParser
from monai.networks.nets.regunet import AffineHead
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from istn_monai import AffineTransformation, BSplineTransformation, Warp
from istn_monai.geometry.bspline import cubic_bspline
from istn_monai.io.datalist import read_datalist
from istn_monai.refinement import Refiner
from istn_monai.workflow.checkpoints import load_checkpoint
from istn_monai.workflow.evaluation import label_metrics
from istn_monai.workflow.results import weights_hash

DATA = Path(os.environ.get("ISTN_DATA_DIR", ROOT.parent / "shared" / "data")) / "hippocampus"
TARGETS = ("theta", "stn")
SECONDS_GOAL = 1.5
SHOWN_SIZE = 128
NO_PATIENCE = 10**9


class TransposedConvolution(nn.Module):
    """A B-spline's field as one transposed convolution with a dense kernel, and a crop: the authors' and AIRLab's way.

    Args:
        bspline: whose field it is; its control spacing must be a whole number of voxels.
    """

    def __init__(self, bspline: BSplineTransformation) -> None:
        super().__init__()
        profiles, crop = [], [slice(None), slice(None)]
        axes = zip(bspline.spatial_size, bspline.spacing, bspline.control_spacing, bspline.domain_origin, strict=True)
        for size, voxel, spacing, origin in axes:
            stride, offset = round(spacing / voxel), -origin / voxel  # the lattice begins so many voxels outside
            whole = math.floor(offset)
            profiles.append(cubic_bspline((torch.arange(4.0 * stride) + offset - whole) / stride - 2))
            crop.append(slice(3 * stride + whole, 3 * stride + whole + size))
        kernel = functools.reduce(lambda product, profile: product[..., None] * profile, profiles)
        self.dims = bspline.spatial_dims
        self.register_buffer("kernel", kernel.expand(self.dims, 1, *kernel.shape).contiguous())
        self.stride = [round(c / h) for c, h in zip(bspline.control_spacing, bspline.spacing, strict=True)]
        self.crop = tuple(crop)
        self.convolve = getattr(nn.functional, f"conv_transpose{self.dims}d")

    def forward(self, control: Tensor) -> Tensor:
        """Control points' displacements in voxels ``(B, D, *control_shape)`` to the ddf ``(B, D, *S)``."""
        return self.convolve(control, self.kernel, stride=self.stride, groups=self.dims)[self.crop]


def bspline_candidates(size: int, spacing: int, device: str) -> dict[str, Candidate]:
    """The field of one level of control points: ours, a dense transposed convolution, deepali."""
    bspline = BSplineTransformation((size,) * 3, 1.0, spacing, max_displacement=None).to(device)
    control = random((1, *bspline.parameter_shapes[0]), device)
    theta = (control / spacing).flatten(1).requires_grad_()
    control.requires_grad_()
    dense = TransposedConvolution(bspline).to(device)
    return {
        OURS: Candidate(lambda: bspline(theta), [theta], lambda: 0.0),
        "transposed convolution": Candidate(
            lambda: dense(control), [control], lambda: common.largest_difference(dense(control), bspline(theta))
        ),
        **deepali_candidate(size, spacing, device),
    }


def deepali_candidate(size: int, spacing: int, device: str) -> dict[str, Candidate]:
    """deepali's free-form deformation, checked against ours where both are the same; nothing without deepali."""
    try:
        from deepali.core import Axes, Grid
        from deepali.spatial import FreeFormDeformation
    except ImportError:
        return {}
    grid = Grid(size=(size,) * 3)
    transform = FreeFormDeformation(grid, stride=spacing).to(device)
    whole_cells = math.ceil(size / spacing) * spacing + 1
    bspline = BSplineTransformation((whole_cells,) * 3, 1.0, spacing, max_displacement=None).to(device)
    control = random((1, *bspline.parameter_shapes[0]), device)
    transform.params.data.copy_(control.flip(1) * 2 / (size - 1))  # x, y, z; the grid's corners are -1 and 1

    def error() -> float:
        cube = transform.evaluate_spline().detach().cpu().movedim(1, -1)
        voxels = grid.transform_vectors(cube, axes=Axes.CUBE_CORNERS, to_axes=Axes.GRID).flip(-1).movedim(-1, 1)
        expected = bspline((control / spacing).flatten(1))[..., :size, :size, :size]
        return common.largest_difference(voxels, expected)

    return {"deepali": Candidate(transform.evaluate_spline, [transform.params], error)}


def affine_candidates(size: int, device: str) -> dict[str, Candidate]:
    """An affine field: ours, from bounded parameters; and that of MONAI's ``AffineHead``, from the matrix."""
    affine = AffineTransformation((size,) * 3).to(device)
    theta = (0.3 * random((1, affine.num_parameters), device)).requires_grad_()
    head = AffineHead(3, [size] * 3, [1] * 3, 1)
    head.grid = head.grid.to(device)
    center = (size - 1) / 2  # ours acts about the grid's center, MONAI's about its first voxel
    matrix = affine.matrix(theta.detach())[:, :-1]
    matrix[..., -1] += center - (matrix[..., :-1] * center).sum(-1)
    rows = matrix.flatten(1).requires_grad_()

    def monai_field() -> Tensor:
        return head.affine_transform(rows) - head.grid

    return {
        OURS: Candidate(lambda: affine(theta), [theta], lambda: 0.0),
        "MONAI AffineHead": Candidate(
            monai_field, [rows], lambda: common.largest_difference(monai_field(), affine(theta))
        ),
    }


def warp_candidates(size: int, device: str) -> dict[str, Candidate]:
    """Sampling of one image: our Warp and MONAI's."""
    bspline = BSplineTransformation((size,) * 3, 1.0, 16, max_displacement=None).to(device)
    ddf = bspline(0.2 * random((1, bspline.num_parameters), device)).requires_grad_()
    image = torch.sigmoid(random((1, 1, size, size, size), device, seed=SEED + 1)).requires_grad_()
    ours, theirs = Warp(), monai.networks.blocks.Warp(mode="bilinear", padding_mode="border")
    return {
        OURS: Candidate(lambda: ours(image, ddf), [image, ddf], lambda: 0.0),
        "MONAI Warp": Candidate(
            lambda: theirs(image, ddf),
            [image, ddf],
            lambda: common.largest_difference(theirs(image, ddf), ours(image, ddf)),
        ),
    }


def time_fields(sizes: Sequence[int], repeats: int, device: str) -> list[Row]:
    """Rows of all that makes or applies a field."""
    rows = []
    for size in sizes:
        for spacing in (8, 16):
            candidates = bspline_candidates(size, spacing, device)
            rows += compare(f"B-spline field {size}^3, spacing {spacing}", candidates, repeats, device)
        rows += compare(f"affine field {size}^3", affine_candidates(size, device), repeats, device)
        rows += compare(f"warp {size}^3", warp_candidates(size, device), repeats, device)
    return rows


def bundle(device: str, shipped_weights: bool = True, **settings: Any) -> ConfigParser:
    """The bundle's inference config, with the network's weights loaded, ready on a device."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(ROOT / "bundle"), "device": device} | settings)
    network = parser.get_parsed_content("network").eval()
    if shipped_weights:
        checkpoint = parser.get_parsed_content("checkpoint_file")
        load_checkpoint(checkpoint, network, device)
    return parser


def smooth_pair(spatial_size: Sequence[int], spacing: Any = 1.0, seed: int = SEED) -> Tensor:
    """A smooth random image, warped by a smooth random field, and itself: ``(1, 2, *S)`` in [0, 1], moving, fixed."""
    texture = BSplineTransformation(spatial_size, spacing, 6.0, max_displacement=None)
    moving = torch.sigmoid(texture(random((1, texture.num_parameters), "cpu", seed))[:, :1])
    motion = BSplineTransformation(spatial_size, spacing, 24.0)
    fixed = Warp()(moving, motion(random((1, motion.num_parameters), "cpu", seed + 1)))
    return torch.cat([moving, fixed], dim=1)


def grid_of(parser: ConfigParser) -> tuple[Sequence[int], Any]:
    """Size and spacing of the grid that the network was trained on."""
    settings = parser.get_parsed_content("settings")
    return settings.spatial_size, settings.spacing


def registration_pairs(parser: ConfigParser, number: int) -> list[dict[str, Any]]:
    """Test pairs of the hippocampus through the bundle's preprocessing; synthetic ones, without labels, if absent."""
    if (DATA / "pairs_100.json").is_file():
        items = read_datalist(DATA / "pairs_100.json", ["testing"])["testing"][:number]
        return [parser.get_parsed_content("preprocessing")(item) for item in items]
    size, spacing = grid_of(parser)
    return [{"image": smooth_pair(size, spacing, seed=2 * seed)[0]} for seed in range(number)]


def input_of(pair: Mapping[str, Any], device: str) -> Tensor:
    """A pair's network input ``(1, 2C, *S)``."""
    return convert_to_tensor(pair["image"], track_meta=False)[None].to(device)


def time_registration(network: nn.Module, image: Tensor, steps: int, repeats: int, device: str) -> list[Row]:
    """Rows of one network pass, and of refinements of either target, pass included, of a pair ``(1, 2C, *S)``."""

    def one_pass() -> Tensor:
        with torch.no_grad():
            return network(image)

    calls: dict[str, Callable[[], object]] = {"one pass": one_pass}
    for target in TARGETS:
        for number in (1, steps):
            refiner = Refiner(steps=number, target=target, patience=NO_PATIENCE)
            calls[f"refinement of {target}, steps: {number}"] = functools.partial(refiner, network.istn, image)
    measured = common.measure(calls, repeats, device)
    for target in TARGETS:
        few, many = (measured[f"refinement of {target}, steps: {number}"] for number in (1, steps))
        many["seconds_per_step"] = (many["median"] - few["median"]) / max(steps - 1, 1)
    size = " x ".join(map(str, image.shape[2:]))
    rows = [{"what": f"{size}: {what}", "candidate": OURS, **row} for what, row in measured.items()]
    print("\n".join(map(common.line, rows)), flush=True)
    return rows


def register(parser: ConfigParser, pair: Mapping[str, Any], steps: int, device: str) -> dict[str, Row]:
    """Seconds, objective and, if there are labels, Dice of one pair, by method."""
    network, image = parser.get_parsed_content("network"), input_of(pair, device)
    with torch.no_grad():
        ddf = network(image)
    fields = {"Id": torch.zeros_like(ddf), "one-pass": ddf}
    metrics: dict[str, Row] = {method: {} for method in fields}
    for target in TARGETS:
        refiner = Refiner(steps=steps, target=target, patience=NO_PATIENCE)
        seconds, result = common.timed(functools.partial(refiner, network.istn, image), device)
        fields[target] = result.ddf
        metrics[target] = result.reports[0].numbers() | {"seconds": seconds}  # of the whole call, one pass included
    if "fixed_label_original" in pair:
        soi = parser.get_parsed_content("settings").soi_labels
        for method, ddf in fields.items():
            metrics[method]["dice_merged"] = label_metrics(pair, ddf.cpu(), soi)["dice_merged"]
    return metrics


def register_pairs(parser: ConfigParser, pairs: Sequence[Mapping[str, Any]], steps: int, device: str) -> dict[str, Any]:
    """Summary and metrics of all pairs, by method; the targets take turns."""
    rows = [register(parser, pair, steps, device) for pair in pairs]
    summary: dict[str, Row] = {}
    for method in rows[0]:
        names = rows[0][method]
        columns = {name: [row[method][name] for row in rows] for name in names}
        summary[method] = {k: common.spread(v) | {"mean": statistics.fmean(v)} for k, v in columns.items()}
    real = "fixed_label_original" in pairs[0]
    data = f"{DATA.name}: first {len(pairs)} test pairs of pairs_100.json" if real else "synthetic"
    return {"data": data, "steps": steps, "summary": summary, "pairs": rows}


def claims(summary: Mapping[str, Row], steps: int) -> list[str]:
    """What the metrics say of refinement, in words."""
    theta, stn = (summary[target] for target in TARGETS)
    seconds = theta["seconds"]
    lines = [
        f"{method:9}" + "".join(f"  {name} {values['mean']:.4f}" for name, values in metrics.items() if name != "steps")
        for method, metrics in summary.items()
        if metrics
    ]
    verdict = "yes" if seconds["max"] < SECONDS_GOAL else "NO"
    lines.append(
        f"{steps}-step refinement of theta below {SECONDS_GOAL} s for each pair: {verdict} "
        f"(median {seconds['median']:.2f}, {seconds['min']:.2f} - {seconds['max']:.2f} s, n={seconds['n']})"
    )
    if "dice_merged" in theta:
        ours, theirs = theta["dice_merged"]["mean"], stn["dice_merged"]["mean"]
        verdict = "yes" if ours >= theirs else "NO"
        lines.append(f"with at least the Dice of stn: {verdict} ({ours:.4f} against {theirs:.4f}, means)")
    return lines


def benchmark(device: str, repeats: int, sizes: Sequence[int], pairs: int, steps: int) -> Row:
    """All that this script measures."""
    if common.version("hf-deepali") is None:
        print("deepali is not installed (pip install hf-deepali): not compared")
    parser = bundle(device)  # first, so that weights that do not fit are known at once
    network = parser.get_parsed_content("network")
    items = registration_pairs(parser, pairs)
    rows = time_fields(sizes, repeats, device)
    rows += time_registration(network, input_of(items[0], device), steps, repeats, device)
    result = {
        "provenance": common.provenance(device, repeats=repeats, weights=weights_hash(network.state_dict())),
        "rows": rows,
        "ratios": common.ratios(rows),
        "registration": register_pairs(parser, items, steps, device),
    }
    return result


def shown_size(sizes: Sequence[int]) -> int:
    """The size that is printed in short."""
    return SHOWN_SIZE if SHOWN_SIZE in sizes else max(sizes)


def show(result: Row, size: int) -> None:
    """Ratios of one size, and registration."""
    print(f"\ntimes ours, at {size}^3:")
    for what, others in result["ratios"].items():
        if f" {size}^3" in what:
            print(f"{what:56} " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in others.items()))
    registration = result["registration"]
    print(f"\nregistration, {registration['data']} (means):")
    print("\n".join(claims(registration["summary"], registration["steps"])), flush=True)


def main(
    threads: int = 2,
    repeats: int = 7,
    device: str = "cpu",
    sizes: tuple[int, ...] = (64, 128, 192),
    pairs: int = 10,
    steps: int = 50,
    output: str | None = None,
) -> None:
    torch.set_num_threads(threads)
    with common.tf32(False):
        result = benchmark(device, repeats, sizes, pairs, steps)
    file = Path(output or common.RESULTS / f"speed_{device.split(':')[0]}.json")
    common.write(result, file)
    show(result, shown_size(sizes))
    print(f"written: {os.path.relpath(file)}")
    common.must_agree(result["rows"])


if __name__ == "__main__":
    fire.Fire(main)
