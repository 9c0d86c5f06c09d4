"""Tests of `istn_monai.transforms.registration_grid`: the grid that covers the fixed image."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from istn_monai import Grid, RegistrationGridd
from istn_monai.geometry.grids import registration_grid
from istn_monai.transforms.registration_grid import MOST_VOXELS, content_grid, covering_grid, covers

AT_LEAST = (48, 64, 48)


def image(size, spacing=(1.0, 1.0, 1.0), angle=0.3) -> MetaTensor:
    """An image with content everywhere on an oblique grid."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn * torch.tensor(spacing, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([5.0, -70.0, 11.0])
    generator = torch.Generator().manual_seed(0)
    return MetaTensor(1 + torch.rand(1, *size, generator=generator), affine=affine)


def padded(original: MetaTensor, before, after, value: float = 0.0) -> MetaTensor:
    """The image with constant voxels around it, where it was in the world."""
    pad = [n for low, high in reversed(list(zip(before, after, strict=True))) for n in (low, high)]
    affine = original.affine.clone()
    affine[:3, 3] -= affine[:3, :3] @ torch.tensor(before, dtype=affine.dtype)
    return MetaTensor(torch.nn.functional.pad(original.as_tensor(), pad, value=value), affine=affine)


def test_an_image_that_fits_gets_the_grid_of_training():
    fixed = image((40, 60, 47))
    grid = covering_grid(fixed, (1.0, 1.0, 1.0), AT_LEAST)
    assert grid == registration_grid(Grid.of(fixed), AT_LEAST, 1.0)


@pytest.mark.parametrize("value", [0.0, -1000.0])
def test_padding_needs_no_voxels_and_moves_nothing(value):
    fixed = image((40, 60, 47))
    whole = covering_grid(fixed, (1.0, 1.0, 1.0), AT_LEAST)
    for before, after in (((20, 30, 23), (20, 30, 24)), ((50, 0, 7), (0, 80, 60))):
        grid = covering_grid(padded(fixed, before, after, value), (1.0, 1.0, 1.0), AT_LEAST)
        assert grid.spatial_size == AT_LEAST
        assert (grid.affine - whole.affine).abs().max() < 1e-9


@pytest.mark.parametrize("size, spacing", [((50, 60, 47), 1.0), ((70, 100, 47), 1.0), ((30, 61, 90), 2.5)])
def test_a_larger_image_is_covered_in_steps_of_16_and_no_more(size, spacing):
    fixed = image(size, (spacing,) * 3)
    grid = covering_grid(fixed, (1.0, 1.0, 1.0), AT_LEAST)
    assert covers(grid, Grid.of(fixed))
    for found, least, n in zip(grid.spatial_size, AT_LEAST, size, strict=True):
        assert (
            found == least if (n - 1) * spacing <= least - 1 else found % 16 == 0 and found - 16 < (n - 1) * spacing + 1
        )
    assert (grid.center - Grid.of(fixed).center).abs().max() < 1e-9


def test_axes_of_the_file_may_be_in_any_order():
    fixed = image((100, 40, 30))
    turned = MetaTensor(fixed.as_tensor().permute(0, 2, 3, 1), affine=fixed.affine[:, [1, 2, 0, 3]])
    one, other = (covering_grid(x, (1.0, 1.0, 1.0), AT_LEAST) for x in (fixed, turned))
    assert one.spatial_size == other.spatial_size == (112, 64, 48)
    assert (one.affine - other.affine).abs().max() < 1e-9


def test_a_grid_beyond_the_bound_is_refused_with_a_way_out():
    affine = torch.diag(torch.tensor([1.0, 1.0, 200.0, 1.0]))
    fixed = MetaTensor(torch.rand(1, 300, 300, 2), affine=affine)
    with pytest.raises(ValueError) as error:
        covering_grid(fixed, (1.0, 1.0, 1.0), AT_LEAST)
    text = str(error.value)
    for said in ("(304, 304, 208)", f"{MOST_VOXELS:,}", "spatial_size", "[48, 64, 48]"):
        assert said in text


def test_content_is_what_differs_from_the_first_voxel():
    values = torch.zeros(1, 6, 7)
    values[0, 2:4, 3:7] = 1
    grid = content_grid(MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 3.0, 1.0]))))
    assert grid.spatial_size == (2, 4) and grid.affine[:2, 2].tolist() == [4.0, 9.0]


def test_auto_in_the_transform_and_wrong_sizes():
    pair = {"moving_image": image((40, 50, 40)), "fixed_image": image((70, 50, 40))}
    result = RegistrationGridd("auto", 1.0, at_least=AT_LEAST)(pair)
    assert result["fixed_image"].shape == result["moving_image"].shape == (1, 80, 64, 48)
    with pytest.raises(ValueError, match="needs at_least"):
        RegistrationGridd("auto", 1.0)
    with pytest.raises(ValueError, match='numbers of voxels, "auto" or "image", got \'large\''):
        RegistrationGridd("large", 1.0, at_least=AT_LEAST)


def test_a_fixed_image_smaller_than_a_voxel_of_the_grid_is_an_error():
    tiny = MetaTensor(torch.rand(1, 20, 24, 18), affine=torch.diag(torch.tensor([1e-3, 1e-3, 1e-3, 1.0])))
    for size in ("auto", (8, 8, 8)):
        grid = RegistrationGridd(size, spacing=1.5, at_least=(8, 8, 8))
        with pytest.raises(ValueError, match=r"fixed_image is 0\.024 mm large, .* 1\.5 mm: check the voxel sizes"):
            grid({"moving_image": tiny, "fixed_image": tiny})
