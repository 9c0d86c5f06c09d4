"""Tests of the registration without a network: `register --model intensities`."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import rand
from monai.data import MetaTensor

from istn_monai import Registration, RegistrationGridd
from istn_monai.folders import find_weights
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.separable import block_means
from istn_monai.metrics import folding_fraction, jacobian_determinant
from istn_monai.refine_weights import PRESETS
from istn_monai.weights import read_weights
from istn_monai.workflow.errors import foreseen_cause

SIZE = (44, 40, 36)
STRETCH = (1.12, 0.93, 1.05)


def texture() -> torch.Tensor:
    """A ball with a smooth texture in the middle of darkness, ``(1, *S)``."""
    coarse = block_means(rand(1, 1, 30, 27, 24), 2)
    image = torch.nn.functional.interpolate(coarse, SIZE, mode="trilinear", align_corners=True)[0]
    axes = [torch.linspace(-1, 1, n) for n in SIZE]
    radius = sum(grid**2 for grid in torch.meshgrid(*axes, indexing="ij")).sqrt()
    inside = torch.sigmoid((0.75 - radius) * 20)
    return inside * (0.4 + (image - image.mean()) / image.std() * 0.15).clamp(0)


@pytest.fixture(scope="module")
def pair() -> dict[str, MetaTensor]:
    """The same voxels twice; the moving image's header says that they are of another size, and flipped."""
    image = texture()
    moving = np.diag([*STRETCH, 1.0])
    moving[:3, 3] = 7.0, -3.0, 12.0
    fixed = np.eye(4)
    return {"moving_image": MetaTensor(image, affine=moving), "fixed_image": MetaTensor(image.clone(), affine=fixed)}


@pytest.fixture(scope="module")
def registered(pair):
    return Registration("intensities", device="cpu", qa=False)(pair)


def test_voxels_of_another_size_are_found(pair, registered):
    """Where a fixed voxel lies in the moving image the headers alone say: it is the same voxel."""
    moving, fixed = Grid.of(pair["moving_image"]), Grid.of(pair["fixed_image"])
    expected = moving.points() - fixed.points()
    inside = pair["fixed_image"].as_tensor()[0] > 0.1
    error = (registered["displacement"].as_tensor().double() - expected).norm(dim=0)[inside]
    away = (expected - expected[:, inside].mean(1)[:, None, None, None]).norm(dim=0)[inside]
    assert away.mean() > 0.9  # mm, after the joined centers of mass
    assert error.median() < 0.3 and error.quantile(0.95) < 0.7


@pytest.mark.parametrize("spacing, hint", [(50, "or the spacing, if that was given"), (0.01, "a larger spacing")])
def test_a_spacing_that_makes_no_grid_is_named_beside_the_image(pair, spacing, hint):
    with pytest.raises(RuntimeError) as error:
        Registration("intensities", device="cpu", qa=False, spacing=spacing)(pair)
    assert re.search(f"fixed_image.*{hint}", str(foreseen_cause(error.value)))


def test_nothing_folds_and_the_warped_image_is_alike(pair, registered):
    ddf = registered["displacement"].as_tensor()[None].double()
    assert folding_fraction(jacobian_determinant(ddf)).item() == 0
    warped, fixed = registered["warped"].as_tensor(), pair["fixed_image"].as_tensor()
    assert (warped - fixed).abs().mean() < 0.1 * (fixed - fixed.mean()).abs().mean()


def test_without_steps_it_is_the_initial_alignment(pair):
    result = Registration("intensities", refine_steps=0, device="cpu", qa=False)(pair)
    assert not result["pred"].any()
    assert torch.allclose(result["initial_alignment"][:3, :3].double(), torch.eye(3).double())


def test_settings_of_a_user_come_before_its_own():
    registration = Registration(
        "intensities", device="cpu", refine_levels=[[4, 3, 0], [2, 3, 1]], refine_weights="smooth"
    )
    inferer = registration.content("inferer")
    assert inferer.refiner.steps == 6 and inferer.refiner.weights == PRESETS["smooth"]
    own = Registration("intensities", device="cpu").content("inferer").refiner
    assert own.weights == PRESETS["intensities"] and own.learning_rate == 0.5 and own.levels[-1] == (1, 10, 5)


def test_the_file_says_what_it_is():
    weights = read_weights(find_weights("intensities"))
    settings = weights.settings
    assert (settings.transformation, settings.initial_alignment) == ("affine+bspline", "moments")
    assert tuple(settings.control_spacing) == (20, 6, 4, 3, 2.5) and not settings.has_itn
    assert sum(value.numel() for value in weights.state.values()) == 1
    network = settings.network()
    weights.load_into(network)
    assert not network(rand(1, 2, 20, 18, 16)).any()


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_a_grid_of_the_image_covers_all_of_it(spacing):
    """Beyond a registration grid a B-spline moves nothing: no voxel of the image may lie on its border."""
    image = torch.zeros(1, *SIZE)
    image[:, 20:24, 18:22, 16:20] = rand(1, 4, 4, 4)
    images = {key: MetaTensor(image, affine=np.diag([-1.0, 1, 1.3, 1])) for key in ("moving_image", "fixed_image")}
    grids = {
        size: Grid.of(RegistrationGridd(size, spacing, at_least=(8, 8, 8))(images)["fixed_image"])
        for size in ("image", "auto")
    }
    corners = Grid.of(images["fixed_image"]).corners()
    last = torch.tensor(grids["image"].spatial_size)[:, None] - 1
    places = grids["image"].voxels(corners)
    assert (places >= 0.5).all() and (places <= last - 0.5).all()
    assert all(n < m for n, m in zip(grids["auto"].spatial_size, grids["image"].spatial_size, strict=True))
    with pytest.raises(ValueError, match='spatial_size "image" needs at_least'):
        RegistrationGridd("image")


def test_results_are_written_and_simpleitk_has_the_same_points(pair, tmp_path):
    registration = Registration("intensities", device="cpu", qa=True, refine_levels=[[4, 5, 0], [2, 5, 2]])
    result = registration(pair)
    registration.save(result, tmp_path / "out")
    assert (tmp_path / "out" / "qa.png").is_file()
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    points = Grid.of(pair["fixed_image"]).points()
    displacement = result["displacement"].as_tensor().double()
    lps = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    for place in ((20, 18, 16), (9, 31, 22), (0, 0, 0), (43, 39, 35)):
        point, moved = points[(slice(None), *place)], displacement[(slice(None), *place)]
        found = torch.tensor(transform.TransformPoint((point * lps).tolist()), dtype=torch.float64) * lps
        torch.testing.assert_close(found, point + moved, rtol=0, atol=1e-4)
