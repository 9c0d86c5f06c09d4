"""Images that lie turned or far apart: linear registration from many starts, principal axes, structures, files."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from istn_monai import ISTN, STN, AffineTransformation, InitialAlignmentd
from istn_monai.alignment import INITIAL_ALIGNMENTS, check_start, initial_alignment, principal_axes
from istn_monai.geometry.grids import Grid, map_points
from istn_monai.linear_registration import SIMILARITIES, Side, axes_of, coarse, linear_registration, rotation, turned
from istn_monai.structure_alignment import structure_alignment

SIZE, SPACING = (44, 40, 36), (1.5, 1.8, 2.0)


def scene(points):
    """A long blob, a large one at its end and a small one at its side, in RAS mm ``(*S, 3)``: no symmetry."""
    blobs = [((0, 0, 0), (16, 6, 5), 0.8), ((14, 8, 4), (7, 7, 7), 1.0), ((-9, -8, 9), (4, 5, 8), 0.5)]
    return sum(h * np.exp(-0.5 * (((points - c) / s) ** 2).sum(-1)) for c, s, h in blobs)


def picture(to_scene, affine, size=SIZE, channels=None):
    """``(1, *size)`` of the scene at ``to_scene`` of each voxel's world point."""
    grid = Grid(size, torch.as_tensor(affine))
    points = map_points(torch.as_tensor(to_scene), grid.points()).movedim(0, -1).numpy()
    return MetaTensor(torch.as_tensor(scene(points))[None].float(), affine=affine)


def oblique(degrees, flip=1.0, size=SIZE):
    """An oblique, anisotropic affine about the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zx", [degrees, -degrees], degrees=True).as_matrix() * np.array(SPACING)
    affine[:3, 0] *= flip
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def truth_of(degrees, scale=1.0, shift=(8.0, -5.0, 6.0), seed=0):
    """Fixed to moving world."""
    axis = np.random.default_rng(seed).normal(size=3)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def error_of(found, truth):
    points = torch.as_tensor(np.random.default_rng(1).uniform(-18, 18, (3, 60)))
    return (map_points(found, points) - map_points(torch.as_tensor(truth), points)).norm(dim=0).max().item()


@pytest.mark.parametrize("degrees", [5.0, 70.0, 160.0])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_rigid_finds_any_turn(degrees, flip):
    truth = truth_of(degrees)
    fixed = picture(np.eye(4), oblique(12))
    moving = picture(np.linalg.inv(truth), oblique(-20, flip, (60, 52, 48)), (60, 52, 48))
    found = initial_alignment("rigid", moving, fixed)
    linear = found[:3, :3]
    assert (linear @ linear.T - torch.eye(3)).abs().max() < 1e-5
    assert error_of(found, truth) < 1.0
    if degrees == 70.0:  # which one start alone does not reach
        centered = initial_alignment("moments", moving, fixed)
        assert error_of(centered, truth) > 10


def test_affine_finds_turn_and_scale():
    truth = truth_of(40.0, 1.2)
    fixed = picture(np.eye(4), oblique(12))
    moving = picture(np.linalg.inv(truth), oblique(0, 1.0, (60, 52, 48)), (60, 52, 48))
    assert error_of(initial_alignment("affine", moving, fixed), truth) < 1.6  # a voxel
    assert error_of(initial_alignment("rigid", moving, fixed), truth) > 2.5


@pytest.mark.parametrize("similarity", ["nmi", "mind"])
def test_other_contrasts_need_another_similarity(similarity):
    truth = truth_of(25.0)
    fixed = picture(np.eye(4), oblique(0))
    moving = picture(np.linalg.inv(truth), oblique(0))
    values = moving.as_tensor() / moving.max()
    inverted = MetaTensor((values * (1 - values) * 4).clamp(0, 1), affine=moving.affine)
    sides = (Side(image.as_tensor(), Grid.of(image)) for image in (inverted, fixed))
    start = torch.eye(4, dtype=torch.float64)
    start[:3, 3] = torch.as_tensor(truth[:3, 3])
    found, _ = linear_registration(*sides, [start], similarity=similarity, levels=((24, 100), (36, 30)))
    assert error_of(found, truth) < error_of(start, truth) / 2


@pytest.mark.parametrize("degrees", [0.0, 130.0])
def test_principal_axes_are_joined(degrees):
    truth = truth_of(degrees)
    fixed = picture(np.eye(4), oblique(12))
    moving = picture(np.linalg.inv(truth), oblique(-20, 1.0, (60, 52, 48)), (60, 52, 48))
    assert error_of(initial_alignment("principal_axes", moving, fixed), truth) < 2.0
    axes = principal_axes(fixed)
    assert (axes.T @ axes - torch.eye(3)).abs().max() < 1e-9
    assert abs(float(axes[0, 0])) > 0.9  # the longest blob lies along the first axis


def test_principal_axes_in_the_plane():
    values = torch.zeros(1, 40, 40)
    values[0, 10:30, 18:23], values[0, 25:30, 14:23] = 1.0, 1.0
    turn = np.eye(3)
    turn[:2, :2] = rotation(np.radians(90.0), torch.ones(1)).numpy()
    fixed = MetaTensor(values, affine=np.eye(3))
    moving = MetaTensor(values, affine=turn)
    found = initial_alignment("principal_axes", moving, fixed)
    assert np.allclose(found[:2, :2], turn[:2, :2], atol=1e-6)


def test_turns_are_those_of_a_cube():
    assert len(axes_of(3)) == 13 and len(axes_of(2)) == 1
    start = torch.eye(4, dtype=torch.float64)
    center = torch.tensor([3.0, -2.0, 5.0]).double()
    starts = turned(start, center)
    assert len(starts) == 13 * 11
    for matrix in starts:
        assert torch.allclose(map_points(matrix, center), center)
        assert torch.linalg.det(matrix[:3, :3]).item() == pytest.approx(1.0)
    expected = Rotation.from_rotvec([0.3, 0.0, 0.0]).as_matrix()
    assert np.allclose(rotation(0.3, torch.tensor([1.0, 0, 0])), expected)


def test_headers_are_preferred():
    fixed = picture(np.eye(4), oblique(0))
    side = Side(torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0)), Grid.of(fixed))
    start = torch.eye(4, dtype=torch.float64)
    found, _ = linear_registration(side, side, [start, *turned(start, side.grid.center)], levels=((16, 5),))
    assert torch.linalg.det(found[:3, :3]) == pytest.approx(1.0, abs=1e-5) and error_of(found, np.eye(4)) < 3


# structures


def blob_representation(image):
    """What a network would find: the bright parts, if they lie as in its training, along the first axis."""
    return torch.cat([(image > 0.55).float(), ((image > 0.25) & (image < 0.5)).float()])


@pytest.mark.parametrize("degrees", [0.0, 75.0])
def test_structures_are_brought_together(degrees):
    truth = truth_of(degrees, 1.15)
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = -1.5 * 23.5
    sides = [
        Side(picture(to_scene, affine, (48, 48, 48)).as_tensor(), Grid((48, 48, 48), torch.as_tensor(affine)))
        for to_scene in (np.linalg.inv(truth), np.eye(4))
    ]
    assert error_of(structure_alignment(*sides, blob_representation), truth) < 3.5


def test_a_turned_image_is_shown_upright():
    truth = truth_of(50.0)
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = -1.5 * 23.5
    grid = Grid((48, 48, 48), torch.as_tensor(affine))
    sides = [Side(picture(m, affine, (48, 48, 48)).as_tensor(), grid) for m in (np.linalg.inv(truth), np.eye(4))]
    upright = sides[1].values

    def sees_upright_alone(image):
        """Structures as far as the image is like the one that the network knows."""
        likeness = float((image * upright).sum() / (image.norm() * upright.norm()).clamp_min(1e-6))
        return blob_representation(image) * max(0.0, min(1.0, 3 * likeness - 1.2))

    assert error_of(structure_alignment(*sides, sees_upright_alone), truth) < 2.5


def test_structures_that_are_not_there_are_said():
    affine = torch.eye(4).double()
    side = Side(torch.rand(1, 20, 20, 20), Grid((20, 20, 20), affine))
    with pytest.raises(ValueError, match="the network finds no structure in fixed_image"):
        structure_alignment(side, side, lambda image: torch.zeros(2, *image.shape[1:]))
    numbers = itertools.count()

    def only_fixed(image):
        result = torch.zeros(1, *image.shape[1:])
        result[:, 8:12, 8:12, 8:12] = float(next(numbers) == 0)
        return result

    with pytest.raises(ValueError, match="do not come together: are both of the kind"):
        structure_alignment(side, side, only_fixed)


# the dictionary transform


def pair_of():
    fixed = picture(np.eye(4), oblique(0))
    return {"moving_image": picture(np.linalg.inv(truth_of(20.0)), oblique(0)), "fixed_image": fixed}


def test_choices_are_the_same_everywhere():
    for name in (*INITIAL_ALIGNMENTS, "start.tfm", "greedy:affine.mat", "[a.h5,1]"):
        check_start(name)
    for name in ("middle", "", None, 3):
        with pytest.raises(ValueError, match="initial_alignment must be one of .* or a transform's file"):
            check_start(name)
    with pytest.raises(ValueError, match="similarity must be one of"):
        InitialAlignmentd("rigid", similarity="ssd")
    assert set(SIMILARITIES) == {"mse", "image", "nmi", "mind"}


def test_a_file_is_the_start(tmp_path):
    pair, truth = pair_of(), truth_of(20.0)
    lps = np.diag([-1.0, -1, 1, 1])
    matrix = lps @ truth @ lps
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    file = tmp_path / "start.tfm"
    sitk.WriteTransform(transform, str(file))
    ready = InitialAlignmentd(str(file))(pair)
    assert np.allclose(ready["initial_alignment"], truth, atol=1e-9)
    expected = np.linalg.inv(truth) @ np.asarray(pair["moving_image"].affine)
    assert np.allclose(ready["moving_image"].affine, expected)
    np.savetxt(tmp_path / "plain.mat", truth)
    ready = InitialAlignmentd(f"greedy:{tmp_path / 'plain.mat'}")(pair)
    assert np.allclose(ready["initial_alignment"], truth, atol=1e-9)


def test_files_that_cannot_be_a_start_are_said(tmp_path):
    pair = pair_of()
    with pytest.raises(FileNotFoundError, match=r"no such transform.*none\.tfm"):
        InitialAlignmentd(str(tmp_path / "none.tfm"))(pair)
    flat = tmp_path / "flat.tfm"
    sitk.WriteTransform(sitk.Euler2DTransform(), str(flat))
    with pytest.raises(ValueError, match="of 2 dimensions"):
        InitialAlignmentd(str(flat))(pair)
    bent = tmp_path / "bent.tfm"
    sitk.WriteTransform(sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), [3, 3, 3]), str(bent))
    with pytest.raises(ValueError, match="holds a BSpline, which bends: only linear transforms can be a start"):
        InitialAlignmentd(str(bent))(pair)
    np.savetxt(tmp_path / "singular.mat", np.diag([1.0, 1, 0, 1]))
    with pytest.raises(ValueError, match="invertible"):
        InitialAlignmentd(f"greedy:{tmp_path / 'singular.mat'}")(pair)
    np.savetxt(tmp_path / "plain.mat", np.eye(4))
    with pytest.raises(ValueError, match="plain matrix of numbers"):
        InitialAlignmentd(str(tmp_path / "plain.mat"))(pair)


def test_structures_need_a_network_that_finds_some():
    affine = AffineTransformation((16, 16, 16), 2.0)
    without = ISTN(None, STN(3, 2, affine), affine)
    for network in (None, without):
        with pytest.raises(ValueError, match="'structures' needs a trained network with an ITN"):
            InitialAlignmentd("structures", network=network)(pair_of())


def test_structures_through_a_network():
    class Bright(torch.nn.Module):
        """An ITN that finds what is bright."""

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            return torch.cat([(image > 0.55).float(), ((image > 0.25) & (image < 0.5)).float()], dim=1) * self.one

    truth = truth_of(60.0)
    affine = AffineTransformation((48, 48, 48), 1.5)
    network = ISTN(Bright(), STN(3, 4, affine), affine)
    pair = {
        "moving_image": picture(np.linalg.inv(truth), oblique(10, 1.0, (60, 52, 48)), (60, 52, 48)),
        "fixed_image": picture(np.eye(4), oblique(0)),
    }
    ready = InitialAlignmentd("structures", network=network)(pair)
    assert error_of(ready["initial_alignment"], truth) < 4.5


def test_a_coarse_side_covers_what_it_was_made_of_whatever_the_order_of_its_axes():
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -1.0, 2.0, 1.5, 1.0  # file axes along -A, S, R
    affine[:3, 3] = torch.tensor([5.0, 40.0, -7.0])
    side = Side(torch.rand(1, 40, 10, 24), Grid((40, 10, 24), affine))
    made = coarse(side, 4.0)
    assert made.values.shape == (1, *made.grid.spatial_size) == (1, 10, 5, 9)
    places = made.grid.voxels(side.grid.corners())
    last = torch.tensor(made.grid.spatial_size)[:, None] - 0.5
    assert bool((places >= -0.5).all() and (places <= last).all())
    assert torch.allclose(made.grid.center, side.grid.center)


def test_other_poses_show_an_image_turned_by_their_angle():
    shown = []
    affine = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    side = Side(torch.zeros(1, 21, 21, 21), Grid((21, 21, 21), affine))
    side.values[0, 10, 10, 10:20] = 1.0  # a rod along the last axis

    def nothing_but_at_first(image):
        shown.append(image)
        return torch.ones(1, *image.shape[1:]) if len(shown) == 1 else torch.zeros(1, *image.shape[1:])

    with pytest.raises(ValueError, match="do not come together"):
        structure_alignment(side, side, nothing_but_at_first)
    middle = torch.tensor([10.0, 10.0, 10.0])
    for image in shown[2:]:
        found = (image[0] > 0.3).nonzero().float() - middle
        direction = found.mean(dim=0) / found.mean(dim=0).norm()
        along = float(direction[2])
        assert along == pytest.approx(0.5, abs=0.1) or along == pytest.approx(1.0, abs=0.02)
    assert len(shown) == 8
