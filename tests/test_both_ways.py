"""Symmetric registration, its loss, closed inverses of what is written, and how far points are off after both ways."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from oracles import max_abs

from istn_monai import (
    ISTN,
    STN,
    AffineTransformation,
    BSplineTransformation,
    ISTNLoss,
    NetworkSettings,
    RefineInferer,
    Refiner,
    SVFTransformation,
    spatial_transformation,
    world_transform,
)
from istn_monai.directions import BothWays, OneWay, one_of_both
from istn_monai.geometry.components import WorldAffine, WorldField
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.sampling import compose
from istn_monai.geometry.world_transform import WorldTransform, closed_inverse
from istn_monai.inferer import refinement_of
from istn_monai.levels import levels_at_once
from istn_monai.losses import other_way
from istn_monai.metrics import inverse_consistency, jacobian_determinant
from istn_monai.networks import ISTNOutput
from istn_monai.objective import PairObjective
from istn_monai.qa.rules import AMBER, GREEN, traffic_light
from istn_monai.registration import Registration
from istn_monai.workflow.inverse import inverse_of_pair
from istn_monai.workflow.pair_metrics import jacobian_of

SIZE = (30, 34)


def blob(center, radii, size=SIZE):
    """A smooth ellipse ``(1, 1, *size)``."""
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij")
    return torch.exp(-(sum(((x - c) / r) ** 2 for x, c, r in zip(axes, center, radii, strict=True)) ** 2))[None, None]


MOVING, FIXED = blob((13, 16), (8, 5)), blob((16, 18), (6, 8))


@pytest.mark.parametrize("weights", [None, "structures", "accurate"])
def test_registered_both_ways_one_is_the_inverse_of_the_other(weights):
    svf = SVFTransformation(SIZE, 1.0, (12.0, 6.0))
    refiner = Refiner(steps=40, symmetric=True, weights=weights)
    there = refiner.register(svf, MOVING, FIXED)
    back = refiner.register(svf, FIXED, MOVING)
    assert there.reports[0].objective_end < 0.3 * there.reports[0].objective_start
    assert max_abs(there.theta, -back.theta) < 1e-3
    error = inverse_consistency(there.ddf, back.ddf, svf.spacing)["inverse_consistency"]
    one_way = Refiner(steps=40, weights=weights)
    fields = (one_way.register(svf, *pair).ddf for pair in ((MOVING, FIXED), (FIXED, MOVING)))
    assert error < 0.05
    assert 5 * error < inverse_consistency(*fields, svf.spacing)["inverse_consistency"]


def test_the_objective_is_the_mean_of_both_ways():
    svf = SVFTransformation(SIZE, 1.0, 8.0)
    theta = 0.5 * torch.randn(1, svf.num_parameters, generator=torch.Generator().manual_seed(0))
    forth, back = (PairObjective("accurate", *pair, svf.spacing) for pair in ((MOVING, FIXED), (FIXED, MOVING)))
    ddf, value = BothWays(svf, forth, back)(theta, 1)
    expected = (forth(svf(theta)) + back(svf.inverse(theta))) / 2
    assert torch.equal(ddf, svf(theta)) and max_abs(value, expected) < 1e-7
    terms = BothWays(svf, forth, back).terms(theta, ddf)
    assert max_abs(sum(terms.values()), expected) < 1e-6
    assert max_abs(OneWay(svf, forth)(theta, 1)[1], forth(svf(theta))) == 0
    assert torch.equal(one_of_both(theta, -theta), theta)


@pytest.mark.parametrize("name", ["affine", "rigid", "affine+svf"])
def test_other_transformations_with_an_inverse(name):
    transformation = spatial_transformation(name, SIZE, 1.0, (12.0, 6.0))
    result = Refiner(steps=60, symmetric=True, weights="structures").register(transformation, MOVING, FIXED)
    assert result.reports[0].objective_end < 0.6 * result.reports[0].objective_start
    assert len(result.reports[0].trace) == 61


def test_components_in_turn_are_symmetric_as_well():
    transformation = spatial_transformation("affine+svf", SIZE, 1.0, (12.0, 6.0))
    refiner = Refiner(symmetric=True, weights="accurate", levels=[[2, 40, 0], [1, 60, 1]])
    there = refiner.register(transformation, MOVING, FIXED)
    report = there.reports[0]
    assert report.levels == ((2, 40), (1, 60)) and report.objective_end < 0.2 * report.objective_start
    linear, local = transformation.split(there.theta)
    assert linear.abs().max() > 0.01 and local.abs().max() > 0.1
    found = inverse_consistency(there.ddf, transformation.inverse(there.theta), transformation.spacing)
    assert found["inverse_consistency"] < 0.05
    # what is reported is the mean of both ways, by hand
    forth, against = (PairObjective("accurate", *pair, (1.0, 1.0)) for pair in ((MOVING, FIXED), (FIXED, MOVING)))
    expected = (forth(there.ddf) + against(transformation.inverse(there.theta))) / 2
    assert report.objective_end == pytest.approx(expected.item(), rel=1e-4)


def test_what_cannot_be_symmetric_says_so():
    bspline = spatial_transformation("bspline", SIZE)
    for transformation in (bspline, BSplineTransformation(SIZE)):
        with pytest.raises(ValueError, match="symmetric needs a transformation whose inverse is known: svf, rigid"):
            Refiner(symmetric=True, weights="accurate").register(transformation, MOVING, FIXED)
    with pytest.raises(ValueError, match="symmetric refines theta"):
        Refiner(symmetric=True, target="stn")
    svf = SVFTransformation(SIZE, 1.0, 8.0)
    with pytest.raises(ValueError, match="refine_levels of components need a transformation that has some"):
        Refiner(symmetric=True, weights="accurate", levels=[[2, 5, 0]]).register(svf, MOVING, FIXED)


def test_a_costly_field_is_refined_at_larger_strides():
    assert [tuple(level) for level in levels_at_once(50, (20, 20))] == [(2, 12, None), (1, 38, None)]
    assert [tuple(level) for level in levels_at_once(1, (64, 64, 64))] == [(2, 1, None)]
    strides = Refiner(steps=8, weights="accurate").strides_of(SVFTransformation((48, 48, 32), 1.0, 16.0))
    assert strides == [4, 4, 2, 2, 2, 2, 2, 2]
    assert Refiner(steps=4, weights="accurate", levels=[[1, 4]]).strides_of(SVFTransformation((48, 48), 1.0)) == [1] * 4


def network_of(transformation, seed=0):
    torch.manual_seed(seed)
    network = ISTN(None, STN(2, 2, transformation), transformation)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return network.eval()


def test_a_network_is_asked_both_ways():
    svf = SVFTransformation(SIZE, 1.0, 12.0)
    network = network_of(svf)
    image = torch.cat([MOVING, FIXED], 1)
    start = Refiner(steps=0, symmetric=True)(network, image).theta
    other = Refiner(steps=0, symmetric=True)(network, image.flip(1)).theta
    assert start.abs().max() > 1e-4 and max_abs(start, -other) < 1e-7


def test_the_inferer_registers_both_ways():
    svf = SVFTransformation(SIZE, 1.0, 12.0)
    network = network_of(svf)
    image = torch.cat([MOVING, FIXED], 1)
    inferer = RefineInferer(steps=5, weights="structures", both_ways=True)
    pred = inferer(image, network)
    back = inferer(image.flip(1), network)
    assert max_abs(refinement_of(pred[0]).back_ddf, back[0].as_tensor()) == 0
    assert "both_ways=True" in repr(inferer) and "symmetric" not in repr(inferer)
    assert "symmetric=True" in repr(RefineInferer(steps=5, symmetric=True))
    assert refinement_of(RefineInferer(steps=5)(image, network)[0]).back_ddf is None


# training


@pytest.mark.parametrize("variant", ["u", "s", "e", "i"])
def test_a_symmetric_loss_is_the_mean_of_both_ways(variant):
    generator = torch.Generator().manual_seed(0)
    svf = SVFTransformation((10, 12), 1.0, 4.0)
    theta = torch.randn(2, svf.num_parameters, generator=generator)
    image, label = (torch.rand(2, 2, 10, 12, generator=generator) for _ in range(2))
    mask = (torch.rand(2, 2, 10, 12, generator=generator) > 0.2).float()
    rep = torch.rand(2, 2, 10, 12, generator=generator).chunk(2, 1)
    output = ISTNOutput(image, *rep, theta, svf(theta))
    swapped = ISTNOutput(image.flip(1), *rep[::-1], -theta, svf(-theta))
    plain = ISTNLoss(variant, weights={"structures": 1, "image": 0.1, "bending": 0.5})
    loss = ISTNLoss(variant, weights={"structures": 1, "image": 0.1, "bending": 0.5}, inverse=svf.inverse)
    for batch, other in (
        ({"label": label}, {"label": label.flip(1)}),
        ({"label": label, "mask": mask}, {"label": label.flip(1), "mask": mask.flip(1)}),
    ):
        expected = (plain(output, batch) + plain(swapped, other)) / 2
        assert max_abs(loss(output, batch), expected) < 1e-6
    assert torch.equal(other_way(output, {"mask": mask}, svf(-theta))[1]["mask"], mask.flip(1))


def test_settings_of_a_velocity_field():
    settings = NetworkSettings(transformation="affine+svf", spatial_size=(16, 16, 16), affine_bounds={"rotation": 90})
    assert NetworkSettings.of_state_dict(json.loads(json.dumps(settings.state_dict()))) == settings
    assert settings.spatial_transformation().components[0].limits[1] == pytest.approx(np.pi / 2)
    bspline = NetworkSettings(spatial_size=(16, 16, 16))
    assert bspline.overridden({"transformation": "svf"}, "model.pt").transformation == "svf"
    with pytest.raises(ValueError, match="model.pt was trained with other settings"):
        bspline.overridden({"transformation": "affine+svf"}, "model.pt")
    with pytest.raises(ValueError, match="model.pt was trained with other settings"):
        settings.overridden({"affine_bounds": {"rotation": 30}}, "model.pt")
    with pytest.raises(ValueError, match="max_displacement of svf"):
        NetworkSettings(transformation="svf", max_displacement=None)


# in the world


@pytest.mark.parametrize("name", ["svf", "affine+svf", "affine"])
def test_closed_inverse_of_what_is_written(name):
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[1.2, -0.3, 0], [0.2, 1.4, 0.1], [0, -0.1, 1.9]])
    grid = Grid((24, 20, 18), affine)
    bounds = None if name == "svf" else {"rotation": 10, "translation": 3, "scale": 1.1, "shear": 10}
    transformation = spatial_transformation(name, grid.spatial_size, grid.spacing, 14.0, affine_bounds=bounds)
    theta = 0.5 * torch.randn(1, transformation.num_parameters, generator=torch.Generator().manual_seed(0))
    start = torch.eye(4, dtype=torch.float64)
    start[:3, 3] = torch.tensor([20.0, -7.0, 4.0])
    transform = world_transform(transformation, theta, grid, start)
    inverse = closed_inverse(transformation, theta, grid, start)
    kinds = {"svf": [WorldField, WorldAffine], "affine+svf": [WorldField, WorldAffine, WorldAffine]}
    assert [type(part) for part in inverse.components] == kinds.get(name, [WorldAffine, WorldAffine])
    points = grid.points()[:, 6:-6, 6:-6, 6:-6].flatten(1)
    back = inverse.transform_points(transform.transform_points(points))
    assert (back - points).norm(dim=0).mean() < 0.04
    assert (transform.transform_points(points) - points).norm(dim=0).mean() > 10


def test_only_those_with_an_inverse_have_a_closed_one():
    bspline = BSplineTransformation((9, 9, 9))
    theta = torch.zeros(1, bspline.num_parameters)
    assert closed_inverse(bspline, theta, Grid((9, 9, 9), torch.eye(4)), torch.eye(4)) is None


def test_jacobian_of_a_known_map():
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    grid = Grid((8, 9, 7), affine)
    matrix = torch.tensor([[0.2, 0.1, 0.0], [0.0, -0.1, 0.0], [0.3, 0.0, 0.05]], dtype=torch.float64)
    field = MetaTensor(torch.tensordot(matrix, grid.points(), dims=1), affine=affine)
    determinant = jacobian_of(field)
    assert determinant.shape == (1, 8, 9, 7) and determinant.dtype == torch.float32
    expected = torch.linalg.det(matrix + torch.eye(3))
    assert (determinant.as_tensor()[0, 1:-1, 1:-1, 1:-1] - expected).abs().max() < 1e-5


def test_inverse_consistency_by_hand():
    ddf, back = torch.zeros(1, 2, 10, 10), torch.zeros(1, 2, 10, 10)
    ddf[:, 0], back[:, 0] = 1.0, -0.5
    back[:, 0, 5:] = -1.0
    found = inverse_consistency(ddf, back, (2.0, 1.0))
    # 4 rows come back half a voxel of 2 mm off, 5 rows exactly, and one leaves the grid
    assert found["inverse_consistency"] == pytest.approx(4 / 9, abs=1e-6)
    assert found["inverse_consistency_p99"] == pytest.approx(1.0)
    where = torch.zeros(10, 10)
    where[0] = 1.0
    assert inverse_consistency(ddf, back, (2.0, 1.0), where)["inverse_consistency_structures"] == pytest.approx(1.0)


def test_the_light_sees_another_way_back():
    verdicts = [traffic_light({"inverse_consistency_structures": mm}) for mm in (0.1, 3.5)]
    assert [verdict.status for verdict in verdicts] == [GREEN, AMBER]
    assert "registering the other way round leads elsewhere" in verdicts[1].reasons[0]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Two images of one pair of ellipsoids on anisotropic grids."""
    folder = tmp_path_factory.mktemp("both")
    for name, shift in (("moving", 2.0), ("fixed", 0.0)):
        axes = np.meshgrid(*[np.arange(n) for n in (40, 44, 36)], indexing="ij")
        mm = [x * s - c for x, s, c in zip(axes, (1.0, 1.1, 1.2), (20, 24, 21), strict=True)]
        mm[0] = mm[0] - shift
        values = 100 * np.exp(-(((mm[0] / 9) ** 2 + (mm[1] / 13) ** 2 + (mm[2] / 7) ** 2) ** 2))
        image = nib.Nifti1Image(values.astype(np.float32), np.diag([1.0, 1.1, 1.2, 1.0]))
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"{name}.nii.gz")
    return {f"{name}_image": str(folder / f"{name}.nii.gz") for name in ("moving", "fixed")}


def test_a_registration_writes_inverse_and_jacobian(crops, tmp_path):
    options = {"transformation": "svf", "symmetric": True, "both_ways": True, "jacobian": True, "qa": False}
    registration = Registration(refine_steps=6, device="cpu", **options)
    result = registration(crops)
    registration.save(result, tmp_path, inverse=True)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["options"]["settings"]["transformation"] == "svf"
    assert report["metrics"]["inverse_consistency"] < 0.1
    assert report["transforms"]["inverse_transform.h5"]["residual_mm"]["mean"] < 0.1
    there, back = (sitk.ReadTransform(str(tmp_path / name)) for name in ("transform.h5", "inverse_transform.h5"))
    for point in ((-20.0, -24.0, 21.0), (-15.0, -30.0, 18.0)):
        assert max_abs(np.array(back.TransformPoint(there.TransformPoint(point))), point) < 0.1
    image = nib.load(tmp_path / "jacobian.nii.gz")
    assert image.shape == (40, 44, 36)
    field = torch.as_tensor(result["displacement"].as_tensor()).double()
    voxels = field / torch.tensor([1.0, 1.1, 1.2]).double().view(3, 1, 1, 1)
    assert max_abs(np.asarray(image.dataobj), jacobian_determinant(voxels[None])[0]) < 1e-5


def test_settings_that_do_not_go_together(crops):
    with pytest.raises(ValueError, match="symmetric needs a transformation whose inverse is known"):
        Registration(refine_steps=2, symmetric=True, device="cpu", qa=False)(crops)
    with pytest.raises(ValueError, match="symmetric counts in a refinement alone"):
        Registration(refine_steps=0, symmetric=True, device="cpu")


def test_there_and_back_of_the_written_field_is_that_of_the_ddf():
    svf = SVFTransformation((20, 22), 1.0, 8.0)
    theta = torch.randn(1, svf.num_parameters, generator=torch.Generator().manual_seed(1))
    assert compose(svf(theta), svf.inverse(theta))[..., 4:-4, 4:-4].abs().mean() < 0.02
    assert AffineTransformation((9, 9)).invertible and svf.invertible


def originals(size, affine) -> dict[str, MetaTensor]:
    return {f"{side}_image_original": MetaTensor(torch.zeros(1, *size), affine=affine) for side in ("moving", "fixed")}


@pytest.mark.parametrize(("shift", "other", "left"), [(0.3, 0.0, 0.3), (0.7, 0.0, 0.0), (0.7, 0.6, 0.6)])
def test_an_inverse_that_leads_astray_gives_way_to_another_and_is_told_if_that_is_no_better(
    monkeypatch, shift, other, left
):
    images = originals((8, 9, 7), np.diag([1.0, 1.2, 1.5, 1.0]))
    exact, known, searched = (np.eye(4) for _ in range(3))
    known[0, 3], searched[0, 3] = shift, other  # mm; half a voxel is 0.5
    exact, known, searched = (WorldTransform([WorldAffine(matrix)], 3) for matrix in (exact, known, searched))
    monkeypatch.setattr(WorldTransform, "inverse", lambda self, grid: searched)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, residual = inverse_of_pair(exact, images, torch.eye(4, dtype=torch.float64), 1.0, known=known)
    assert max_abs(residual["max"], left) < 1e-6
    assert [str(each.message)[:39] for each in caught] == ["inverse_transform.h5 is off by up to 0."] * (left > 0.5)


def test_the_inverse_of_a_velocity_field_holds_for_points_that_it_takes_out_of_the_grid():
    svf = SVFTransformation((24, 26), 1.0, 8.0)
    theta = 0.3 * torch.randn(1, svf.num_parameters, generator=torch.Generator().manual_seed(0))
    grid, start = Grid(svf.spatial_size, torch.eye(3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64)
    transform, known = world_transform(svf, theta, grid, start), closed_inverse(svf, theta, grid, start)
    points = grid.points().flatten(1)
    images = originals((24, 26), np.eye(3))
    images["moving_image_original"] = MetaTensor(torch.zeros(1, 36, 38), affine=[[1, 0, -6], [0, 1, -6], [0, 0, 1.0]])
    inverse, residual = inverse_of_pair(transform, images, start, 1.0, known)
    away = [
        (each.transform_points(transform.transform_points(points)) - points).norm(dim=0).max()
        for each in (known, inverse)
    ]
    assert away[0] > 0.9 and away[1] == residual["max"] < 0.3  # mm; half a voxel is 0.5
