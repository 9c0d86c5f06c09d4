"""Registration grids, resampling, pulling back and the dictionary transforms built on them, against ITK and by hand.

All images are anisotropic; moving, fixed and registration grid differ in size, spacing and direction.
"""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oracles import (
    DIMS,
    apply,
    column,
    grid_points,
    inside,
    itk_resample,
    max_abs,
    meta,
    oblique_affine,
    rng,
    rotation,
    smooth_image,
)
from scipy.ndimage import map_coordinates

from istn_monai.alignment import center_of_mass, initial_alignment, translation
from istn_monai.geometry import resampling as world
from istn_monai.geometry.grids import Grid, map_points, registration_grid, square
from istn_monai.geometry.meta import affine_of
from istn_monai.geometry.resampling import pull_back_points, warp_labels
from istn_monai.geometry.sampling import sample, voxel_grid
from istn_monai.transforms.postprocessing import WarpPaird
from istn_monai.transforms.preprocessing import InitialAlignmentd
from istn_monai.transforms.registration_grid import RegistrationGridd

FIXED = {2: (19, 14), 3: (15, 12, 10)}
MOVING = {2: (17, 21), 3: (13, 16, 14)}
GRID = {2: (24, 18), 3: (20, 14, 16)}
CENTER = {2: (31.0, -12.0), 3: (31.0, -12.0, 57.0)}


def fixed_affine(dims, signs=None, order=None):
    return oblique_affine(FIXED[dims], (1.1, 1.6, 1.9)[:dims], 1, CENTER[dims], signs, order)


def moving_affine(dims, center=None):
    """Another orientation (first axis flipped, first two swapped), another place."""
    signs, order = (-1.0, 1.0, 1.0)[:dims], (1, 0, 2)[:dims]
    return oblique_affine(MOVING[dims], (1.7, 1.2, 1.4)[:dims], 2, center or CENTER[dims], signs, order, angle=0.6)


def tensor(affine):
    return torch.as_tensor(affine, dtype=torch.float64)


def linear_field(dims, size, seed):
    """A ddf ``(1, D, *S)`` that is linear in the voxel, so that linear interpolation is exact, and its map x + u(x)."""
    step = np.eye(dims + 1)
    step[:dims, :dims] += rng(seed).uniform(-0.1, 0.1, (dims, dims))
    step[:dims, dims] = rng(seed + 1).uniform(-1.5, 1.5, dims)
    step[:dims, dims] -= (step[:dims, :dims] - np.eye(dims)) @ ((np.array(size) - 1) / 2)
    points = grid_points(size)
    return torch.as_tensor(apply(step, points) - points, dtype=torch.float32)[None], step


# initial alignment


def box(size, low, high):
    image = np.full(size, 3.0)
    image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 8.0
    return image


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_moments_is_where_the_moving_content_lies(dims, signs, angle):
    """Content displaced by (+6, -4, +3) mm in the world: T0 translates a fixed point by just that."""
    shift = np.array([6.0, -4.0, 3.0][:dims])
    signs = [float(s) for s in signs[:dims]]
    middle_box = [n // 2 - 2 for n in FIXED[dims]], [n // 2 + 1 for n in FIXED[dims]]
    image = box(FIXED[dims], *middle_box)
    fixed = oblique_affine(FIXED[dims], (1.0, 1.5, 2.0)[:dims], 1, CENTER[dims], signs, angle=angle)
    moved = fixed.copy()
    moved[:dims, dims] += shift
    expected = np.eye(dims + 1)
    expected[:dims, dims] = shift
    for name in ("moments", "center"):
        assert max_abs(initial_alignment(name, meta(image, moved), meta(image, fixed)), expected) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_moments_by_hand_within_one_grid(dims):
    """The same header; the content of the moving file lies 2 voxels further along an axis that points to world -x."""
    spacing = np.array([1.5, 2.0, 3.0][:dims])
    affine = np.diag([*(spacing * np.array([-1.0, 1.0, 1.0][:dims])), 1.0])
    affine[:dims, dims] = [50.0, 20.0, 10.0][:dims]
    fixed = box(FIXED[dims], [4] * dims, [7] * dims)
    moving = box(FIXED[dims], [6] + [3] * (dims - 1), [9] + [6] * (dims - 1))
    images = [meta(image, affine) for image in (moving, fixed)]
    expected_center = affine[:dims, :dims] @ np.full(dims, 5.0) + affine[:dims, dims]
    assert max_abs(center_of_mass(images[1]), expected_center) < 1e-9
    expected = np.eye(dims + 1)
    expected[:dims, dims] = [-3.0, -2.0, -3.0][:dims]  # 2 voxels of -1.5 mm, -1 of 2 mm, -1 of 3 mm
    t0 = initial_alignment("moments", *images)
    assert max_abs(t0, expected) < 1e-9
    # grids that are the same have the same middle, and the same world
    for name in ("center", "world"):
        t0 = initial_alignment(name, *images)
        assert max_abs(t0, np.eye(dims + 1)) == 0


@pytest.mark.parametrize("dims", DIMS)
def test_center_joins_the_middles(dims):
    center = [9.0, -70.0, 23.0][:dims]
    fixed, moving = fixed_affine(dims), moving_affine(dims, center)
    images = meta(smooth_image(MOVING[dims]), moving), meta(smooth_image(FIXED[dims]), fixed)
    t0 = initial_alignment("center", *images)
    expected = np.eye(dims + 1)
    expected[:dims, dims] = np.array(center) - CENTER[dims]
    assert max_abs(t0, expected) < 1e-9
    assert max_abs(map_points(t0, Grid(FIXED[dims], fixed).center), Grid(MOVING[dims], moving).center) < 1e-9
    assert max_abs(initial_alignment("world", *images), np.eye(dims + 1)) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_moments_of_any_dtype_count_from_the_darkest(dtype):
    image = MetaTensor(torch.as_tensor(box((9, 8), (2, 3), (5, 4))).to(dtype)[None])
    assert max_abs(center_of_mass(image), np.array([3.0, 3.0])) < 1e-6


def test_moments_of_a_constant_image_are_refused():
    image = MetaTensor(torch.ones(1, 5, 4))
    with pytest.raises(ValueError, match="moments.*constant"):
        initial_alignment("moments", image, image)


def test_unknown_names_are_refused_with_the_choices():
    image = MetaTensor(torch.rand(1, 5, 4))
    with pytest.raises(ValueError, match="initial_alignment must be one of.*world.*center.*moments.*'middle'"):
        initial_alignment("middle", image, image)
    with pytest.raises(ValueError, match="initial_alignment must be one of.*world.*center.*moments.*'middle'"):
        InitialAlignmentd("middle")


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name", ["world", "center", "moments"])
def test_the_edited_affine_is_inverse_t0_times_affine(dims, name):
    moving, fixed = smooth_image(MOVING[dims], 1), smooth_image(FIXED[dims], 2)
    pair = {
        "moving_image": meta(moving, moving_affine(dims, [20.0, 5.0, 40.0][:dims])),
        "fixed_image": meta(fixed, fixed_affine(dims)),
        "moving_label": meta(moving > 0.6, moving_affine(dims, [20.0, 5.0, 40.0][:dims])),
    }
    before = pair["moving_image"].affine.clone()
    result = InitialAlignmentd(name)(pair)
    t0 = result["initial_alignment"].numpy()
    expected = np.linalg.inv(t0) @ moving_affine(dims, [20.0, 5.0, 40.0][:dims])
    for key in ("moving_image", "moving_label"):
        assert max_abs(affine_of(result[key]), expected) < 1e-9
        assert max_abs(result[key], pair[key]) == 0
    assert max_abs(affine_of(result["fixed_image"]), fixed_affine(dims)) < 1e-12
    assert torch.equal(pair["moving_image"].affine, before)  # the caller's pair stays as it was
    if name == "center":
        assert max_abs(Grid(MOVING[dims], expected).center, np.array(CENTER[dims])) < 1e-9
    if name == "moments":
        aligned = initial_alignment("moments", result["moving_image"], result["fixed_image"])
        assert max_abs(aligned, np.eye(dims + 1)) < 1e-9


# registration grid


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_registration_grid_is_centered_has_its_spacing_and_faces_ras(dims, signs, order):
    if 2 in order[:dims] and dims == 2:
        pytest.skip("two axes have two orders")
    signs, spacing = [float(s) for s in signs[:dims]], (1.3, 2.5, 0.9)[:dims]
    fixed = fixed_affine(dims, signs, order[:dims])
    grid = registration_grid(Grid(FIXED[dims], fixed), GRID[dims], spacing).affine.numpy()
    middle = (np.array(GRID[dims]) - 1) / 2
    assert max_abs(grid[:dims, :dims] @ middle + grid[:dims, dims], np.array(CENTER[dims])) < 1e-9
    assert max_abs(np.linalg.norm(grid[:dims, :dims], axis=0), np.array(spacing)) < 1e-12
    # the directions are the fixed image's, each nearest to R, A, S in turn
    directions = grid[:dims, :dims] / spacing
    assert (directions.diagonal() > 0.5).all()
    cosines = np.abs(directions.T @ (fixed[:dims, :dims] / np.linalg.norm(fixed[:dims, :dims], axis=0)))
    assert max_abs(np.sort(cosines, axis=1), np.sort(np.eye(dims), axis=1)) < 1e-6


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name, bad", [("spatial_size", (8,)), ("spatial_size", (8, 1)), ("spacing", 0.0)])
def test_bad_grids_are_refused(dims, name, bad):
    options = {"spatial_size": GRID[dims], "spacing": 1.0, name: bad}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        RegistrationGridd(**options)


def reoriented(image, affine, orientation):
    """nibabel's copy of an image with other axes; orientation: for each axis of the file, [new axis, sign]."""
    orientation = np.array(orientation)
    copy = nib.orientations.apply_orientation(image, orientation)
    return copy, affine @ nib.orientations.inv_ornt_aff(orientation, image.shape)


#: RAS to LAS, RAS to RPI, RAS to PIR, and in 2-D their likes
ORIENTATIONS = {
    2: [[(0, -1), (1, 1)], [(0, 1), (1, -1)], [(1, 1), (0, -1)]],
    3: [[(0, -1), (1, 1), (2, 1)], [(0, 1), (1, -1), (2, -1)], [(2, 1), (0, -1), (1, -1)]],
}


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("spacing", [0.9, 4.5])
def test_copies_of_an_image_in_other_orientations_are_the_same_on_the_grid(dims, spacing):
    """Also where the image is area_averaged on its way to a coarser grid."""
    image, affine = smooth_image(FIXED[dims]), fixed_affine(dims)
    transform = RegistrationGridd(GRID[dims], spacing, keys=("fixed_image",))
    expected = transform({"fixed_image": meta(image, affine)})["fixed_image"]
    assert expected.shape == (1, *GRID[dims])
    assert expected.max() > 0.5
    for orientation in ORIENTATIONS[dims]:
        copy, copy_affine = reoriented(image, affine, orientation)
        result = transform({"fixed_image": meta(copy, copy_affine)})["fixed_image"]
        assert max_abs(affine_of(result), affine_of(expected)) < 1e-9
        assert max_abs(result, expected) < 1e-5


def test_files_reoriented_by_nibabel_are_the_same_on_the_grid():
    image = nib.Nifti1Image(smooth_image(FIXED[3]).astype(np.float32), fixed_affine(3))
    transform = RegistrationGridd(GRID[3], 1.2, keys=("fixed_image",))
    results = []
    for codes in ("RAS", "LAS", "PIR"):
        orientation = nib.orientations.axcodes2ornt(codes)
        change = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), orientation)
        copy = image.as_reoriented(change)
        assert "".join(nib.aff2axcodes(copy.affine)) == codes
        results.append(transform({"fixed_image": meta(copy.get_fdata(), copy.affine)})["fixed_image"])
    assert max_abs(results[1], results[0]) < 1e-5
    assert max_abs(results[2], results[0]) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_images_on_the_grid_equal_itk(dims):
    """The moving image, and the fixed one, on a finer grid than their own, where nothing is area_averaged."""
    moving, fixed = smooth_image(MOVING[dims], 3), smooth_image(FIXED[dims], 4)
    shifted = moving_affine(dims, [CENTER[dims][0] + 7.0, *CENTER[dims][1:]])  # so that the grid leaves it
    pair = {"moving_image": meta(moving, shifted), "fixed_image": meta(fixed, fixed_affine(dims))}
    result = RegistrationGridd(GRID[dims], 0.95)(pair)
    grid = affine_of(result["fixed_image"]).numpy()
    for key, image, affine in (("moving_image", moving, shifted), ("fixed_image", fixed, fixed_affine(dims))):
        assert max_abs(affine_of(result[key]), grid) == 0
        expected = itk_resample(image, affine, GRID[dims], grid, np.eye(dims + 1))
        points = apply(np.linalg.inv(affine) @ grid, grid_points(GRID[dims]))
        interior = inside(points, image.shape)
        assert interior.mean() > 0.3
        assert max_abs(result[key][0].as_tensor()[interior], expected[interior]) < 1e-4
        outside = ((points < -1) | (points > column(image.shape, dims))).any(0)
        assert outside.any() or key == "fixed_image"
        assert (result[key][0].as_tensor()[outside] == 0).all()  # beyond the image lies 0


@pytest.mark.parametrize("dims", DIMS)
def test_a_grid_coarser_by_a_whole_factor_holds_the_means_of_blocks(dims):
    """3 x 2 (x 2) voxels of the image make one of the grid, and all edges coincide."""
    factors, size = (3, 2, 2)[:dims], (7, 5, 6)[:dims]
    image = rng(0).uniform(size=[f * n for f, n in zip(factors, size, strict=True)])
    spacing = np.array([1.0, 2.0, 1.5][:dims])
    affine = np.diag([*spacing, 1.0])
    transform = RegistrationGridd(size, tuple(spacing * factors), keys=("fixed_image",))
    result = transform({"fixed_image": meta(image, affine)})["fixed_image"][0].as_tensor()
    blocks = image.reshape([n for pair in zip(size, factors, strict=True) for n in pair])
    assert max_abs(result, blocks.mean(axis=tuple(range(1, 2 * dims, 2)))) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("spacing", [2.4, 3.5, 4.5])
def test_a_coarser_grid_keeps_positions(dims, spacing):
    """A ramp stays the same ramp wherever a grid voxel lies wholly in the image, whatever factor divides its size."""
    affine = fixed_affine(dims)
    slope = column([1.0, -2.0, 0.5][:dims], dims) / 50
    ramp = (apply(affine, grid_points(FIXED[dims])) * slope).sum(0)
    size = (9, 8, 7)[:dims]
    result = RegistrationGridd(size, spacing, keys=("fixed_image",))({"fixed_image": meta(ramp, affine)})["fixed_image"]
    grid = affine_of(result).numpy()
    points = apply(np.linalg.inv(affine) @ grid, grid_points(size))
    half = column(np.abs((np.linalg.inv(affine) @ grid)[:dims, :dims]).sum(1) / 2, dims)
    interior = ((points >= half) & (points <= column(FIXED[dims], dims) - 1 - half)).all(0)
    assert interior.sum() > 5
    expected = (apply(grid, grid_points(size)) * slope).sum(0)
    assert max_abs(result[0].as_tensor()[interior], expected[interior]) < 1e-4


# pulling back


@pytest.mark.parametrize("dims", DIMS)
def test_a_pair_equals_itk(dims):
    """Initial alignment, grid, displacement, and one sampling of the original, against one ITK resampling."""
    moving, fixed = smooth_image(MOVING[dims], 5), smooth_image(FIXED[dims], 6)
    file_affine = moving_affine(dims, [44.0, -3.0, 49.0][:dims])
    pair = {"moving_image": meta(moving, file_affine), "fixed_image": meta(fixed, fixed_affine(dims))}
    aligned = InitialAlignmentd("center")(pair)
    t0 = aligned["initial_alignment"].numpy()
    assert np.abs(t0[:dims, dims]).min() > 3
    # 1.2 mm voxels: the grid does not cover the fixed image everywhere
    own = Grid(FIXED[dims], fixed_affine(dims))
    registration = registration_grid(own, GRID[dims], 1.2)
    grid = registration.affine
    ddf, step = linear_field(dims, GRID[dims], 7)
    points = pull_back_points(ddf, registration, own, Grid.of(aligned["moving_image"]))
    result = sample(aligned["moving_image"].as_tensor()[None].float(), points, padding_mode="zeros")[0, 0]

    # fixed world -> grid voxel -> moved -> fixed world -> moving world
    world = t0 @ grid.numpy() @ step @ np.linalg.inv(grid.numpy())
    expected = itk_resample(moving, file_affine, FIXED[dims], fixed_affine(dims), world)
    in_grid = apply(np.linalg.inv(grid.numpy()) @ fixed_affine(dims), grid_points(FIXED[dims]))
    in_moving = apply(np.linalg.inv(file_affine) @ world @ fixed_affine(dims), grid_points(FIXED[dims]))
    interior = inside(in_grid, GRID[dims]) & inside(in_moving, MOVING[dims])
    assert interior.mean() > 0.3
    assert np.abs(in_moving - grid_points(FIXED[dims]))[:, interior].max() > 2
    assert max_abs(points[0][:, interior], in_moving[:, interior]) < 1e-4
    assert max_abs(result[interior], expected[interior]) < 1e-4

    # the same by the transform that the bundle uses
    bundle = {
        "moving_image_original": aligned["moving_image"],
        "fixed_image_original": aligned["fixed_image"],
        "image": meta(np.zeros(GRID[dims]), grid.numpy()),
        "pred": ddf[0],
    }
    warped = WarpPaird()(bundle)["warped"]
    assert max_abs(affine_of(warped), fixed_affine(dims)) < 1e-9
    assert max_abs(warped[0].as_tensor()[interior], expected[interior]) < 1e-4


@pytest.mark.parametrize("dims", DIMS)
def test_outside_the_grid_the_displacement_is_its_borders(dims):
    fixed = Grid(FIXED[dims], fixed_affine(dims))
    size = (6, 5, 4)[:dims]  # smaller than the fixed image
    grid = registration_grid(fixed, size, 1.0)
    ddf = torch.zeros(1, dims, *size)
    ddf[:, 0] = 2.0
    points = pull_back_points(ddf, grid, fixed, fixed)
    shift = np.linalg.inv(fixed.affine.numpy()) @ grid.affine.numpy() @ np.array([2.0, *[0.0] * dims])
    expected = grid_points(FIXED[dims]) + column(shift[:dims], dims)
    assert max_abs(points[0], expected) < 1e-4


@pytest.mark.parametrize("dims", DIMS)
def test_zero_displacement_joins_the_two_worlds(dims):
    fixed, moving = Grid(FIXED[dims], fixed_affine(dims)), Grid(MOVING[dims], moving_affine(dims))
    grid = registration_grid(fixed, GRID[dims], 1.0)
    points = pull_back_points(torch.zeros(1, dims, *GRID[dims]), grid, fixed, moving)
    expected = apply(np.linalg.inv(moving_affine(dims)) @ fixed_affine(dims), grid_points(FIXED[dims]))
    assert points.shape == (1, dims, *FIXED[dims])
    assert max_abs(points[0], expected) < 1e-4


# labels


def label_map(dims, seed=0):
    """Values 0, 2, 10 and 7 in smooth patches."""
    values = np.array([0, 2, 10, 7])
    return torch.as_tensor(values[np.digitize(smooth_image(MOVING[dims], seed), [0.35, 0.5, 0.7])])[None, None]


def random_points(dims, count, seed=0):
    upper = column(np.array(MOVING[dims]) - 1, dims)
    return rng(seed).uniform(0.0, 1.0, (dims, *count)) * upper


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_identity_keeps_the_labels(dims, dtype):
    label = label_map(dims).to(dtype)
    points = voxel_grid(MOVING[dims], torch.zeros(1))[None]
    result = warp_labels(label, points, [2, 10, 7])
    assert result.dtype == dtype
    assert torch.equal(result, label)


@pytest.mark.parametrize("dims", DIMS)
def test_labels_do_not_mix(dims):
    """Halfway between 2 and 10 lies no 6."""
    label = torch.full((1, 1, *MOVING[dims]), 2)
    label[:, :, 5:] = 10
    points = torch.as_tensor(random_points(dims, (30, 20, 10)[:dims]), dtype=torch.float32)[None]
    result = warp_labels(label, points, [2, 10])
    assert set(result.unique().tolist()) == {2, 10}
    assert torch.equal(result == 10, points[:, :1] > 4.5)


@pytest.mark.parametrize("dims", DIMS)
def test_labels_outside_are_background(dims):
    label = torch.full((1, 1, *MOVING[dims]), 2)
    points = voxel_grid(MOVING[dims], torch.zeros(1))[None].clone()
    points[:, 0] += 3.0
    result = warp_labels(label, points, [2])
    last = MOVING[dims][0] - 3
    assert (result[:, :, :last] == 2).all()
    assert (result[:, :, last:] == 0).all()
    assert (warp_labels(label, points - 1000.0, [2]) == 0).all()


@pytest.mark.parametrize("dims", DIMS)
def test_labels_end_half_a_voxel_beyond_the_last(dims):
    """Where voxels end, at either border of each axis."""
    label = torch.full((1, 1, *MOVING[dims]), 2)
    for axis, size in enumerate(MOVING[dims]):
        points = torch.full((1, dims, *[1] * dims), 3.0)
        for position, expected in ((-0.6, 0), (-0.4, 2), (size - 0.6, 2), (size - 0.4, 0)):
            points[:, axis] = position
            assert warp_labels(label, points, [2]).item() == expected


@pytest.mark.parametrize("dims", DIMS)
def test_labels_that_are_not_asked_for_are_background(dims):
    label = label_map(dims)
    points = voxel_grid(MOVING[dims], torch.zeros(1))[None]
    assert torch.equal(warp_labels(label, points, [10]), torch.where(label == 10, label, 0))
    assert (warp_labels(label, points, []) == 0).all()


@pytest.mark.parametrize("dims", DIMS)
def test_labels_equal_the_largest_of_one_hot_interpolations(dims):
    label = label_map(dims)
    points = random_points(dims, (40, 30, 11)[:dims])
    classes = [0, 2, 10, 7]
    weights = [map_coordinates((label[0, 0] == c).double().numpy(), points, order=1) for c in classes]
    ranked = np.sort(weights, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4  # not a tie
    assert clear.mean() > 0.95
    expected = np.array(classes)[np.argmax(weights, axis=0)]
    result = warp_labels(label, torch.as_tensor(points, dtype=torch.float32)[None], [2, 10, 7])[0, 0].numpy()
    assert (result[clear] == expected[clear]).all()
    assert set(result.ravel().tolist()) == set(classes)


def test_labels_in_equal_parts_become_the_smallest():
    label = torch.tensor([[[[7, 3], [3, 7]]]])
    halfway = torch.full((1, 2, 1, 1), 0.5)
    assert warp_labels(label, halfway, [3, 7]).item() == 3
    assert warp_labels(label, halfway, [7]).item() == 0  # the other half is background


def test_labels_above_what_float32_can_tell_apart():
    label = torch.tensor([[[[614454276, 614454277]]]], dtype=torch.int32)  # as in the Allen atlases
    points = voxel_grid((1, 2), torch.zeros(1))[None]
    assert torch.equal(warp_labels(label, points, [614454277]), torch.where(label == 614454277, label, 0))


@pytest.mark.parametrize("dims", DIMS)
def test_only_where_labels_meet_is_there_a_vote(dims, monkeypatch):
    """Points among voxels of one label take it as it is, and all others are voted on: the result is that of a vote."""
    label = label_map(dims)
    points = torch.as_tensor(random_points(dims, (40, 30, 11)[:dims]) * 1.2 - 0.6, dtype=torch.float32)[None]
    result = warp_labels(label, points)
    with monkeypatch.context() as patched:
        patched.setattr(world, "mixed_cells", torch.ones_like)
        patched.setattr(torch.Tensor, "nonzero", lambda values: torch.arange(len(values))[:, None])
        assert torch.equal(warp_labels(label, points), result)
    voted = world.mixed_cells(label[0, 0])
    assert voted.any() and not voted.all()
    monkeypatch.setattr(world, "largest_label", lambda label, points: torch.zeros_like(points[0], dtype=label.dtype))
    assert (warp_labels(label, points) != result).any()  # there is a vote where it counts


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_labels_do_not_depend_on_how_many_points_are_taken_at_once(monkeypatch, at_once):
    label, points = label_map(2), torch.as_tensor(random_points(2, (9, 11)), dtype=torch.float32)[None]
    expected = warp_labels(label, points, [2, 10, 7])
    monkeypatch.setattr(world, "VOTES_AT_ONCE", at_once)
    assert torch.equal(warp_labels(label, points, [2, 10, 7]), expected)


def test_labels_where_no_point_is_and_where_points_are_not_finite():
    label = label_map(3)
    assert warp_labels(label, torch.zeros(1, 3, 0, 2, 2), [2]).shape == (1, 1, 0, 2, 2)
    assert (warp_labels(label, torch.full((1, 3, 2, 2, 2), float("nan")), [2]) == 0).all()


# small parts


def test_square_takes_the_planar_part_of_a_4x4_affine():
    affine = torch.arange(16.0).reshape(4, 4)
    assert max_abs(square(affine, 2), np.array([[0, 1, 3], [4, 5, 7], [12, 13, 15]])) == 0
    assert max_abs(square(affine, 3), affine) == 0
    assert square(affine, 2).dtype == torch.float64


@pytest.mark.parametrize("dims", DIMS)
def test_map_points_and_translation(dims):
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims] = rotation(dims, 3)
    matrix[:dims, dims] = np.arange(1, dims + 1)
    points = grid_points(GRID[dims])
    assert max_abs(map_points(tensor(matrix), tensor(points)), apply(matrix, points)) < 1e-12
    shift = torch.arange(1, dims + 1, dtype=torch.float64)
    assert max_abs(map_points(translation(shift), tensor(points)), points + column(shift.numpy(), dims)) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
def test_images_that_do_not_meet_in_the_world_are_refused(dims):
    far = oblique_affine(MOVING[dims], (1.0,) * dims, 2, [500.0, *[0.0] * (dims - 1)])
    pair = {
        "moving_image": meta(smooth_image(MOVING[dims], 5), far),
        "fixed_image": meta(smooth_image(FIXED[dims], 6), fixed_affine(dims)),
    }
    with pytest.raises(ValueError, match="moving_image .*do not overlap .*'world': choose 'center' or 'moments'"):
        InitialAlignmentd("world")(pair)
    InitialAlignmentd("center")(pair)
    small = oblique_affine((3,) * dims, (0.05,) * dims, 3, fixed_affine(dims)[:dims] @ [*[4.3] * dims, 1.0])
    pair["moving_image"] = meta(np.arange(3**dims).reshape((3,) * dims), small)  # lies between two sampled points
    InitialAlignmentd("world")(pair)
