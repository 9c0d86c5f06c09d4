"""Sampling against MONAI's Warp, scipy, and shifts by hand."""

import numpy as np
import pytest
import torch
from helpers import rand
from monai.networks.blocks import Warp as MonaiWarp
from oracles import DIMS, SIZE, grid_points, max_abs, normal, smooth_image
from scipy.ndimage import map_coordinates

from istn_monai.geometry import sampling
from istn_monai.geometry.sampling import Warp, affine_points, compose, resample, sample, voxel_grid, warp


def case(dims, seed=0, scale=1.5, batch=2, channels=3):
    """Random image and displacement field that looks beyond the border too."""
    size = SIZE[dims]
    return normal(batch, channels, *size, seed=seed), normal(batch, dims, *size, seed=seed + 1, scale=scale)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_equals_monai(dims, mode, padding_mode):
    image, ddf = case(dims)
    monai = MonaiWarp(mode=mode, padding_mode=padding_mode)
    assert max_abs(Warp(mode, padding_mode)(image.double(), ddf.double()), monai(image.double(), ddf.double())) < 1e-6
    assert max_abs(Warp(mode, padding_mode)(image, ddf), monai(image, ddf)) == 0  # the same operations in one order


def test_bicubic_equals_monai_in_2d():
    image, ddf = case(2)
    assert max_abs(Warp("bicubic")(image, ddf), MonaiWarp(mode="bicubic", padding_mode="border")(image, ddf)) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_equals_scipy(dims):
    image, ddf = case(dims)
    image, ddf = image.double(), ddf.double()
    # scipy's "nearest" is torch's "border"
    points = grid_points(SIZE[dims])[None] + ddf.numpy()
    expected = [
        [map_coordinates(channel, at, order=1, mode="nearest") for channel in item]
        for item, at in zip(image.numpy(), points, strict=True)
    ]
    assert max_abs(warp(image, ddf), np.array(expected)) < 1e-10
    assert max_abs(warp(image.float(), ddf.float()), np.array(expected)) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_zero_field_is_the_identity(dims):
    image, ddf = case(dims)
    assert max_abs(warp(image, torch.zeros_like(ddf)), image) < 5e-6
    assert max_abs(warp(image.double(), torch.zeros_like(ddf).double()), image) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
def test_positive_displacement_pulls_from_larger_indices(dims):
    """Component c of the field moves along tensor axis c + 2, and +1 looks one voxel further along it."""
    image, ddf = case(dims)
    for axis in range(dims):
        shift = torch.zeros_like(ddf)
        shift[:, axis] = 1.0
        last = SIZE[dims][axis] - 1
        body = warp(image, shift).narrow(axis + 2, 0, last)
        assert max_abs(body, image.narrow(axis + 2, 1, last)) < 5e-6
        border = warp(image, shift).narrow(axis + 2, last, 1)
        assert max_abs(border, image.narrow(axis + 2, last, 1)) < 5e-6
        outside = warp(image, shift, padding_mode="zeros").narrow(axis + 2, last, 1)
        assert max_abs(outside, torch.zeros_like(outside)) < 5e-6


@pytest.mark.parametrize("dims", DIMS)
def test_a_ramp_is_sampled_exactly(dims):
    """Linear interpolation of a linear image: warped = ramp + slope . ddf where the points stay inside."""
    size = SIZE[dims]
    slope = torch.arange(1, dims + 1, dtype=torch.float64).view(-1, *[1] * dims)
    ramp = (voxel_grid(size, slope) * slope).sum(0)[None, None]
    ddf = normal(1, dims, *size, scale=0.3, dtype=torch.float64)
    interior = (..., *[slice(2, -2)] * dims)
    assert max_abs(warp(ramp, ddf)[interior], (ramp + (ddf * slope).sum(1, keepdim=True))[interior]) < 1e-10


@pytest.mark.parametrize("dims", DIMS)
def test_autocast_changes_nothing(dims):
    image, ddf = case(dims)
    expected = Warp()(image, ddf)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Warp()(image, ddf)
    assert result.dtype == torch.float32
    assert max_abs(result, expected) < 1e-6


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int64, torch.bool])
def test_images_of_any_dtype_are_sampled_in_float32(dims, dtype):
    image, ddf = case(dims)
    image = (image * 20).abs().to(dtype)
    result = warp(image, ddf)
    assert result.dtype == torch.float32
    assert max_abs(result, warp(image.float(), ddf)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_fields_are_computed_in_float32(dtype):
    image, ddf = case(3)
    result = warp(image, ddf.to(dtype))
    assert result.dtype == torch.float32
    assert max_abs(result, warp(image, ddf.to(dtype).float())) == 0


@pytest.mark.parametrize("dims", DIMS)
def test_other_shapes_are_refused_in_words(dims):
    image, ddf = case(dims)
    with pytest.raises(ValueError, match=r"image and ddf must share one grid.*got .*resample the image") as error:
        warp(image, ddf[..., :-1])
    assert str(tuple(image.shape)) in str(error.value)
    assert str(tuple(ddf[..., :-1].shape)) in str(error.value)
    with pytest.raises(ValueError, match="must share one grid"):
        Warp()(image, torch.cat([ddf, ddf], dim=1))


def test_unknown_modes_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="mode must be one of.*bilinear.*got 'linear'"):
        Warp(mode="linear")
    with pytest.raises(ValueError, match="padding_mode must be one of.*border.*got 'wrap'"):
        Warp(padding_mode="wrap")


def test_has_no_state():
    module = Warp()
    image, ddf = case(3)
    before = dict(module.__dict__)
    assert not module.state_dict()
    assert not list(module.parameters())
    assert not list(module.buffers())
    module(image, ddf)
    assert module.__dict__ == before
    # a grid kept from the last call would give the second one a wrong size
    smaller = tuple(slice(0, -1) for _ in range(3))
    assert module(image[(..., *smaller)], ddf[(..., *smaller)]).shape[2:] == tuple(n - 1 for n in SIZE[3])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(context):
    image, ddf = case(3)
    with context():
        result = Warp()(image, ddf)
    assert max_abs(result.clone(), Warp()(image, ddf)) == 0


@pytest.mark.parametrize("dims", DIMS)
def test_a_batch_equals_its_items(dims):
    image, ddf = case(dims, batch=3)
    singles = torch.cat([warp(image[k : k + 1], ddf[k : k + 1]) for k in range(3)])
    assert max_abs(warp(image, ddf), singles) < 1e-7


@pytest.mark.parametrize("dims", DIMS)
def test_gradients(dims):
    """torch.autograd.gradcheck at its own tolerances, away from whole numbers, where linear interpolation has kinks."""
    size = (4, 3, 5)[:dims]
    image = normal(1, 2, *size, dtype=torch.float64).requires_grad_()
    fraction = torch.as_tensor(np.random.default_rng(1).uniform(0.2, 0.8, (1, dims, *size)))
    whole = torch.as_tensor(np.random.default_rng(2).integers(-1, 1, (1, dims, *size)))
    ddf = (fraction + whole).requires_grad_()
    for padding_mode in ("border", "zeros"):
        assert torch.autograd.gradcheck(lambda i, d, p=padding_mode: warp(i, d, padding_mode=p), (image, ddf))


@pytest.mark.parametrize("dims", DIMS)
def test_sample_takes_points_of_another_shape(dims):
    """The points' grid has a size of its own."""
    image = torch.as_tensor(smooth_image(SIZE[dims]))[None, None]
    shape = (4, 1, 5)[:dims]
    upper = np.array(SIZE[dims]).reshape(-1, *[1] * dims) - 1.0
    points = np.random.default_rng(0).uniform(0, 1, (dims, *shape)) * upper
    expected = map_coordinates(image[0, 0].numpy(), points, order=1)
    assert max_abs(sample(image, torch.as_tensor(points)[None])[0, 0], expected) < 1e-10


@pytest.mark.parametrize("dims", DIMS)
def test_an_axis_of_one_voxel(dims):
    image = normal(1, 1, 5, *[1] * (dims - 1))
    assert max_abs(warp(image, torch.zeros(1, dims, *image.shape[2:])), image) < 5e-6


@pytest.mark.parametrize("dims", DIMS)
def test_compose_moves_by_the_inner_field_first(dims):
    size = SIZE[dims]
    outer = normal(1, dims, *size, seed=1, dtype=torch.float64)
    inner = normal(1, dims, *size, seed=2, dtype=torch.float64)
    points = grid_points(size) + inner[0].numpy()
    moved = [map_coordinates(component, points, order=1, mode="nearest") for component in outer[0].numpy()]
    assert max_abs(compose(outer, inner)[0], inner[0].numpy() + np.array(moved)) < 1e-10


@pytest.mark.parametrize("dims", DIMS)
def test_voxel_grid(dims):
    like = torch.zeros(1, dtype=torch.float64)
    grid = voxel_grid(SIZE[dims], like)
    assert grid.dtype == torch.float64
    assert max_abs(grid, grid_points(SIZE[dims])) == 0


@pytest.mark.parametrize("dims", DIMS)
def test_resample_by_hand(dims):
    """Half the voxel size and one voxel of the old image in from its corner; 0 outside."""
    image = normal(1, 2, *SIZE[dims])
    matrix = torch.diag(torch.tensor([0.5] * dims + [1.0], dtype=torch.float64))
    matrix[:-1, -1] = 1.0
    size = tuple(2 * n for n in SIZE[dims])
    result = resample(image, matrix, size)
    assert result.shape == (1, 2, *size)
    points = 0.5 * grid_points(size) + 1.0
    assert max_abs(affine_points(matrix, size), points) < 1e-6
    for channel in range(2):
        expected = map_coordinates(image[0, channel].double().numpy(), points, order=1, mode="grid-constant")
        assert max_abs(result[0, channel], expected) < 1e-5


def turned_over(axes, size):
    """A map that exchanges axes, turns one round, stretches all, and begins outside of an image of a size."""
    matrix = torch.zeros(len(axes) + 1, len(axes) + 1, dtype=torch.float64)
    matrix[-1, -1] = 1
    for axis, own in enumerate(axes):
        step = (-1.3, 0.6, 1.7)[axis]
        matrix[own, axis], matrix[own, -1] = step, -1.4 if step > 0 else size[own] + 0.3
    return matrix


@pytest.mark.parametrize("padding, mode", [("zeros", "grid-constant"), ("border", "nearest")])
@pytest.mark.parametrize("axes", [(1, 0), (0, 1), (0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_resample_along_axes_is_scipys_means_of_samples(axes, padding, mode):
    """And with a hundredth of a degree more, where each point is sampled, about the same."""
    own, size, samples = (5, 1, 7)[-len(axes) :], (6, 4, 9)[: len(axes)], (2, 1, 3)[: len(axes)]
    image, matrix = normal(2, 3, *own), turned_over(axes, own)
    result = resample(image, matrix, size, padding_mode=padding, samples=samples)
    numbers = np.array(samples).reshape(-1, *[1] * len(axes))
    fine = (grid_points([n * k for n, k in zip(size, samples, strict=True)]) + 0.5) / numbers - 0.5
    points = np.tensordot(matrix[:-1, :-1].numpy(), fine, 1) + matrix[:-1, -1].numpy().reshape(numbers.shape)
    points[np.array(own) == 1] = 0  # a single voxel goes on
    blocks = [number for pair in zip(size, samples, strict=True) for number in pair]
    for item, channel in np.ndindex(2, 3):
        expected = map_coordinates(image[item, channel].double().numpy(), points, order=1, mode=mode)
        expected = expected.reshape(blocks).mean(tuple(range(1, 2 * len(axes), 2)))
        assert max_abs(result[item, channel], expected) < 1e-5
    turned = matrix.clone()
    turned[axes[0], 1] = turned[axes[0], 0] * 1.7e-4
    others = resample(image, turned, size, padding_mode=padding, samples=samples)
    assert 0 < max_abs(others, result) < 1e-2


def test_resample_along_axes_where_it_is_the_same(monkeypatch):
    """Neither for what a product would spread nor for a map that mixes axes; never in half precision."""
    calls, along = [], sampling.resampled_along_axes
    monkeypatch.setattr(sampling, "resampled_along_axes", lambda *given: calls.append(1) or along(*given))
    image, matrix = normal(1, 1, 6, 7, 5), torch.eye(4, dtype=torch.float64)
    matrix[0, -1] = 0.5
    expected = resample(image, matrix, (6, 7, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample(image.double(), matrix, (6, 7, 5)), expected)
    assert len(calls) == 2 and expected.dtype == torch.float32
    holed = image.clone()
    holed[0, 0, 3, 3, 2] = torch.nan
    assert resample(holed, matrix, (6, 7, 5)).isnan().sum() <= 8  # that of its cell
    matrix[0, 1] = 1e-5
    assert max_abs(resample(image, matrix, (6, 7, 5)), expected) < 1e-3
    assert max_abs(resample(image, torch.eye(4), (6, 7, 5), padding_mode="reflection"), image) < 1e-5
    assert len(calls) == 2


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_one_image_without_changing_it(dims, threads):
    """Size 6 along the first axis: one part, two, three, and six for eight threads."""
    image = rand(1, 2, *(6, 7, 8)[:dims]).double()
    ddf = (3 * rand(1, dims, *image.shape[2:], seed=1).double() - 1.5).requires_grad_()
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            moved = image.clone().requires_grad_()
            warped = warp(moved, ddf)
            results.append((warped.detach(), *torch.autograd.grad((warped**2).sum(), (moved, ddf))))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    for one, shared in zip(results[0][1:], results[1][1:], strict=True):
        assert max_abs(one, shared) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
def test_second_derivatives(dims):
    """As MONAI's Warp: a part that autograd does not know would be left out without a word."""
    size = (4, 3, 5)[:dims]
    image = normal(1, 1, *size, dtype=torch.float64)
    ddf = torch.as_tensor(np.random.default_rng(1).uniform(-0.8, 0.8, (1, dims, *size))).requires_grad_()
    direction = normal(1, dims, *size, dtype=torch.float64)

    def second(warped):
        (gradient,) = torch.autograd.grad(warped.square().sum() + ddf.square().sum(), ddf, create_graph=True)
        return torch.autograd.grad(gradient, ddf, direction)[0]

    expected = second(MonaiWarp()(image, ddf))
    assert max_abs(second(warp(image, ddf)), expected) < 1e-12
    assert max_abs(expected, 2 * direction) > 0.01  # what would be left


def test_a_trace_is_right_for_images_of_other_sizes():
    traced = torch.jit.trace(Warp(), (rand(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)))
    image, ddf = rand(1, 1, 6, 9), normal(1, 2, 6, 9)
    assert max_abs(traced(image, ddf), warp(image, ddf)) < 1e-6
