"""MONAI dictionary transforms for what comes out of a network: the pair on its own grids, and its representations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.geometry.resampling import (
    SLAB,
    Sampler,
    intensities,
    on_grid_in_slabs,
    pull_back_points,
    whole_labels,
)
from istn_monai.geometry.sampling import WHOLE
from istn_monai.geometry.transformation import Transformation
from istn_monai.geometry.world_transform import world_transform
from istn_monai.inferer import refinement_of
from istn_monai.transforms.keys import ORIGINAL_KEYS, Pair


class WarpPaird(Transform):
    """Samples the original moving image and label once, straight on the fixed image's own grid.

    Adds ``warped``, ``displacement`` ``(D, *fixed)`` in mm, RAS, from a voxel's world point in the fixed image to where
    it is found in the moving one, and, if there is a moving label, ``warped_label``. The originals are under
    ``ORIGINAL_KEYS``; ``pred`` is the ddf ``(D, *S)``; ``image`` has the registration grid's affine.

    Args:
        transformation: evaluated from ``theta`` ``(P,)`` in the data, exactly, on any grid; without either the ddf is
            interpolated.

    Examples:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.arange(12.0).view(1, 3, 4))
        >>> pair = {"moving_image_original": image, "fixed_image_original": image, "image": image}
        >>> one_voxel = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])  # look one further along the last axis
        >>> WarpPaird()(pair | {"pred": one_voxel})["warped"][0, 0].tolist()
        [1.0, 2.0, 3.0, 0.0]
    """

    def __init__(self, transformation: Transformation | None = None) -> None:
        self.transformation = transformation

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        check_prediction(data)
        moving, fixed = (data[key] for key in ORIGINAL_KEYS[:2])
        grid, device = Grid.of(fixed), self.device(data)
        samplers = {
            "warped": intensities(moving.as_tensor().to(device)),
            "displacement": self.found_in_world(data),
        }
        if ORIGINAL_KEYS[2] in data:
            samplers["warped_label"] = whole_labels(data[ORIGINAL_KEYS[2]].as_tensor().to(device))
        images = on_grid_in_slabs(grid, partial(self.points, data), samplers, moving.shape[1:])
        for slab in grid.slabs(SLAB):
            images["displacement"][:, slab] -= grid.points(torch.float32, slab).to(device)
        results = {name: with_affine(image, grid.affine, fixed) for name, image in images.items()}
        named(results["warped"], file_of(moving))
        if ORIGINAL_KEYS[2] in data:
            named(results["warped_label"], label_file(file_of(data[ORIGINAL_KEYS[2]]), file_of(moving)))
        return dict(data) | results

    def device(self, data: Mapping[Hashable, Any]) -> torch.device:
        """Where it is sampled: that of a ddf which is interpolated; transforms in the world are on the CPU."""
        exact = self.transformation is not None and "theta" in data
        return torch.device("cpu") if exact else torch.as_tensor(data["pred"]).device

    def points(self, data: Mapping[Hashable, Any], slab: slice = WHOLE) -> Tensor:
        """Where each voxel of (a slab of) the fixed image is found, ``(1, D, *fixed)``, in voxels of the moving one."""
        moving, fixed = (Grid.of(data[key]) for key in ORIGINAL_KEYS[:2])
        grid = Grid.of(data["image"])
        if self.transformation is None or "theta" not in data:
            ddf = convert_to_tensor(data["pred"], track_meta=False)[None]
            return pull_back_points(ddf, grid, fixed, moving, slab)
        # the moving image's affine has the initial alignment already
        transform = world_transform(self.transformation, torch.as_tensor(data["theta"])[None], grid)
        return transform.pull_back_points(fixed, moving, slab)

    def found_in_world(self, data: Mapping[Hashable, Any]) -> Sampler:
        """Points ``(1, D, *T)`` in voxels of the moving image to mm, RAS, ``(D, *T)``, initial alignment included."""
        to_world = Grid.of(data[ORIGINAL_KEYS[0]]).affine
        if "initial_alignment" in data:
            to_world = torch.as_tensor(data["initial_alignment"], dtype=torch.float64) @ to_world
        return lambda points: map_points(to_world.to(points), points[0]).float()


def check_prediction(data: Mapping[Hashable, Any]) -> None:
    """ValueError if the network's, or the refinement's, prediction is not finite."""
    for key in ("theta", "pred"):
        if key in data and not torch.isfinite(convert_to_tensor(data[key], track_meta=False)).all():
            raise ValueError(
                f"{key}, what was predicted for this pair, has NaN or infinite values: check the images' intensities "
                "and the weights (istn-monai info), or refine with a lower learning rate"
            )


def file_of(image: MetaTensor) -> str:
    """The file that an image came from; empty for one from memory."""
    return str(image.meta.get("filename_or_obj") or "")


def label_file(label: str, image: str) -> str:
    """A label's file, by another name if its image's is the same in another folder: results would be one file."""
    path = Path(label)
    stem, dot, suffixes = path.name.partition(".")
    return str(path.with_name(f"{stem}_label{dot}{suffixes}")) if label and path.name == Path(image).name else label


def named(image: MetaTensor, file: str) -> MetaTensor:
    """An image whose metadata names a file, which MONAI's ``SaveImaged`` names its own after; none for no file."""
    image.meta.pop("filename_or_obj", None)
    if file:
        image.meta["filename_or_obj"] = file
    return image


class Representd(Transform):
    """Adds what a network made of ``image``: M' and F', as ``moving_representation`` and ``fixed_representation``, and
    the parameters ``theta`` ``(P,)``: those of a refinement, which come with ``pred``, or else the network's own.

    Args:
        network: a :class:`istn_monai.networks.DisplacementNetwork`.

    Examples:
        >>> from monai.data import MetaTensor
        >>> from istn_monai import ISTN, ITN, STN, AffineTransformation, DisplacementNetwork
        >>> affine = AffineTransformation((16, 20))
        >>> network = DisplacementNetwork(ISTN(ITN(2), STN(2, 2, affine), affine))
        >>> result = Representd(network)({"image": MetaTensor(torch.rand(2, 16, 20))})
        >>> result["moving_representation"].shape, result["theta"].shape
        (torch.Size([1, 16, 20]), torch.Size([6]))
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        result = dict(data)
        image = data["image"]
        refinement = refinement_of(data.get("pred"))
        if refinement is not None:
            result["theta"] = refinement.theta
        if refinement is not None and refinement.moving_representation is not None:
            representations = refinement.moving_representation, refinement.fixed_representation
        elif "request" in data:  # a host loads the weights into a network of its own: this one's mean nothing
            return result
        else:
            representations, theta = self.of_network(image)
            result.setdefault("theta", theta)
        for name, representation in zip(("moving", "fixed"), representations, strict=True):
            result[f"{name}_representation"] = with_affine(representation.cpu(), affine_of(image), image)
        return result

    @torch.no_grad()
    def of_network(self, image: MetaTensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """M' and F' ``(K, *S)``, and theta ``(P,)``, of one pass of the network."""
        istn = self.network.istn
        batch = image.as_tensor()[None].to(next(istn.parameters()).device)
        moving, fixed = istn.represent(batch)
        return (moving[0], fixed[0]), istn.stn(torch.cat([moving, fixed], dim=1))[0]
