"""Writing a pair's representations to disk, for another engine to register: one file for each channel, and T0.

Convention:
    ``moving_0000.nii.gz``, ``fixed_0000.nii.gz`` ... are the channels of M' and F', float32. F' lies on the
    registration grid, which is in the fixed image's world. M' lies, by ``world``, where the moving image lies in its
    own file ("own"), so that an engine begins at ``initial.tfm``; or, moved by T0, on the registration grid
    ("aligned"), so that an engine begins at the identity and T0 is joined to what it finds: ``T0 o found``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from istn_monai.apply import resample_image
from istn_monai.geometry.components import WorldAffine
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import with_affine
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.images import save_image
from istn_monai.io.itk_transforms import write_affine
from istn_monai.kinds import choice
from istn_monai.transforms.keys import IMAGE_KEYS, SIDES
from istn_monai.workflow.result_folders import INITIAL, MOST_CHANNELS, channel_file, representations_folder
from istn_monai.workflow.results import SavePairHandler

WORLDS = ("own", "aligned")
RIGHT = 1e-6  # cosine of the angle between axes, up to which it is a right one


def at_right_angles(affine: Tensor) -> bool:
    """Whether the axes of ``(D+1, D+1)`` are at right angles, without which ITK has no image.

    Examples:
        >>> at_right_angles(torch.diag(torch.tensor([2.0, -3, 1]))), at_right_angles(torch.ones(3, 3).triu())
        (True, False)
    """
    axes = affine[:-1, :-1].double()
    axes = axes / axes.norm(dim=0)
    return bool(((axes.T @ axes).fill_diagonal_(0).abs() < RIGHT).all())


def own_grid(pair: Mapping[str, Any]) -> Grid:
    """The grid of the original moving image as it lies in its file, without the initial alignment."""
    aligned = Grid.of(pair["moving_image_original"])
    return Grid(aligned.spatial_size, start_of(pair) @ aligned.affine)


def start_of(pair: Mapping[str, Any]) -> Tensor:
    """T0 ``(D+1, D+1)`` float64."""
    return torch.as_tensor(pair["initial_alignment"]).double()


def placed(pair: Mapping[Any, Any], world: str = "own") -> dict[str, Any]:
    """A pair whose M' lies where ``world`` says; see the module.

    In the moving image's own world the voxels of M' stay what they are, and lie on ``T0 @`` the registration grid's
    affine. Where the axes of that are not at right angles, because T0 scales or shears, M' is interpolated linearly
    on the moving image's grid.

    Args:
        pair: with ``moving_representation`` on the registration grid, ``initial_alignment`` and the originals.
        world: "own" or "aligned".

    Raises:
        ValueError: ``world`` is neither.
    """
    choice(*WORLDS)("world", world)
    if world == "aligned":
        return dict(pair)
    representation, original, start = pair["moving_representation"], pair["moving_image_original"], start_of(pair)
    own = with_affine(representation.as_tensor(), start @ Grid.of(representation).affine, original)
    if not at_right_angles(own.affine):
        back = WorldTransform([WorldAffine(torch.linalg.inv(start))], len(start) - 1)
        grid = own_grid(pair)
        reference = with_affine(original.as_tensor(), grid.affine, original)
        channels = [representation[number : number + 1] for number in range(len(representation))]
        images = [resample_image(channel, back, reference, interpolation="linear") for channel in channels]
        own = with_affine(torch.cat([image.as_tensor() for image in images]), grid.affine, original)
    return dict(pair) | {"moving_representation": own}


class SaveRepresentationsHandler(SavePairHandler):
    """Writes both representations and the initial alignment instead of a registered pair; see the module.

    Args:
        output_dir: folder.
        network: whose weights are named in the report.
        options: resolved settings for the report.
        world: see the module.
        overwrite: see :class:`istn_monai.workflow.SavePairHandler`.
        weights_sha256: likewise.
        counting: keys of a pair's files that count.
    """

    DONE = "represented"

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        options: Mapping[str, Any] | None = None,
        world: str = "own",
        overwrite: bool = False,
        weights_sha256: str | None = None,
        counting: Sequence[str] = IMAGE_KEYS,
    ) -> None:
        super().__init__(output_dir, network, options, qa=False, overwrite=overwrite, weights_sha256=weights_sha256)
        self.options = dict(options or {}) | {"engine": "none", "world": choice(*WORLDS)("world", world)}
        self.results = representations_folder(output_dir)
        self.counting = counting

    def finished(self, files: Mapping[str, str | None]) -> bool:
        """As for a registered pair, of the files that count."""
        return super().finished({key: file for key, file in files.items() if key.startswith(tuple(self.counting))})

    def write(self, pair: Mapping[str, Any], ddf: Tensor, inputs: Mapping[str, Any], points: Mapping[str, str]) -> str:
        """Writes the files to the folder's hidden one; there is nothing to say of them."""
        report = self.report(pair) | {"inputs": inputs, "representations": {}}
        for side in SIDES:
            image = pair[f"{side}_representation"]
            self.save_channels(side, image)
            place = {"shape": list(image.shape[1:]), "affine": Grid.of(image).affine.tolist()}
            report["representations"][side] = {"channels": len(image)} | place
        with self.results.writing(INITIAL) as file:
            write_affine(start_of(pair), file)
        self.write_report(report | {"transforms": {INITIAL: {"maps": "fixed to moving points", "frame": "LPS mm"}}})
        return ""

    def save_channels(self, side: str, representation: MetaTensor) -> None:
        """Writes the channels of one side, each into a file of its own."""
        if len(representation) > MOST_CHANNELS:
            raise ValueError(
                f"the representation has {len(representation)} channels, at most {MOST_CHANNELS} can be written: take "
                "it from Python, by Registration.represented"
            )
        for number, channel in enumerate(representation.as_tensor().float()):
            image = with_affine(channel[None], Grid.of(representation).affine, representation)
            with self.results.writing(channel_file(side, number)) as file:
                save_image(image, file)
