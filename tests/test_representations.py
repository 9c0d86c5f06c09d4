"""What is registered in the place of an ITN's output: the same result by every way in, and clear words for bad ones."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import BUNDLE, DATA_DIR, ball, config, meta, pair_files, rand, random_checkpoint, write_json, write_nifti
from monai.bundle import ConfigWorkflow, run
from monai.data import MetaTensor
from oracles import oblique_affine
from torch import nn

from istn_monai import FrozenITN, NetworkSettings, RegisterISTNd, Registration, RepresentationMapsd
from istn_monai.engines import Representing
from istn_monai.foreign_networks import described_representation
from istn_monai.guidance import representations_of
from istn_monai.io.images import read_image
from istn_monai.mind import mind_ssc
from istn_monai.registration import register_datalist, register_files
from istn_monai.representations import Representation
from istn_monai.runs import evaluate_datalist
from istn_monai.synthetic.pairs import synthesize
from istn_monai.transforms.map_files import channel_files, read_maps
from istn_monai.weights import read_weights
from istn_monai.workflow.errors import foreseen_cause
from istn_monai.workflow.training import TrainingLoss

DATA = DATA_DIR / "hippocampus"
SETTINGS = {
    (dims, name): {
        "spatial_size": [32, 24, 28][:dims], "spacing": 1.5, "control_spacing": [16, 8], "transformation": name,
        "soi_labels": [[1], [2]], "device": "cpu", "initial_alignment": "center",
    }
    for dims in (2, 3)
    for name in ("affine", "bspline")
}  # fmt: skip


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda p: f"{p[1]}-{p[0]}d")
def case(request, tmp_path_factory):
    """Files, settings with weights, a registration with it, and what it gave of one pass and refined."""
    folder = tmp_path_factory.mktemp("case")
    files = pair_files(folder, request.param[0], turn=0, radius=3)
    settings = random_checkpoint(folder / "models", SETTINGS[request.param])
    images = {key: files[key] for key in ("moving_image", "fixed_image")}
    results = {steps: Registration(refine_steps=steps, **settings)(images) for steps in (0, 5)}
    return folder, files, settings, images, results


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Files, settings and images of one case."""
    folder = tmp_path_factory.mktemp("volume")
    files = pair_files(folder, 3, turn=0, radius=3)
    settings = random_checkpoint(folder / "models", SETTINGS[3, "bspline"])
    return folder, files, settings, {key: files[key] for key in ("moving_image", "fixed_image")}


def written(folder, result):
    """M' and F' as files, each in its own image's world."""
    start = torch.as_tensor(result["initial_alignment"]).double()
    files = {}
    for side in ("moving", "fixed"):
        maps = result[f"{side}_representation"]
        dims = maps.ndim - 1
        affine = maps.affine.double()[: dims + 1, : dims + 1] if maps.affine.shape[0] == dims + 1 else None
        affine = maps.affine.double() if affine is None else affine
        affine = start @ affine if side == "moving" else affine
        full = np.eye(4)
        full[:dims, :dims], full[:dims, 3] = affine[:dims, :dims], affine[:dims, dims]
        array = np.moveaxis(maps.as_tensor().numpy(), 0, -1)
        array = array.reshape(*maps.shape[1:], *[1] * (3 - dims), len(maps))
        nib.save(nib.Nifti1Image(array, full), folder / f"{side}_maps.nii.gz")
        files[f"{side}_maps"] = str(folder / f"{side}_maps.nii.gz")
    return files


def assert_same(result, expected, atol=1e-6):
    for name in ("theta", "moving_representation", "fixed_representation"):
        torch.testing.assert_close(torch.as_tensor(result[name]), torch.as_tensor(expected[name]), atol=atol, rtol=0)


# --- the ITN's own maps by other ways --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 5])
def test_the_itns_own_maps_as_files_give_the_same_parameters(case, steps):
    folder, _, settings, images, results = case
    maps = written(folder, results[0])
    assert not np.allclose(results[0]["initial_alignment"], np.eye(len(results[0]["initial_alignment"])))
    result = Registration(refine_steps=steps, representation="file", **settings)(images | maps)
    assert_same(result, results[steps])
    assert torch.equal(result["warped"].as_tensor(), results[steps]["warped"].as_tensor())


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_the_itn_as_a_network_of_somebody_else_gives_the_same_parameters(case, kind):
    folder, _, settings, images, results = case
    itn = Registration(refine_steps=0, **settings).network.istn.itn
    example = torch.rand(1, 1, *results[0]["image"].shape[1:])  # sizes are fixed in a trace
    path = folder / f"itn.{kind}"
    with torch.no_grad():
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(itn, example), path)
        else:
            torch.export.save(torch.export.export(itn, (example,)), path)
    result = Registration(refine_steps=0, representation=f"{kind}:{path}", **settings)(images)
    assert_same(result, results[0], 1e-5)  # convolutions round otherwise, and random heads are steep


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: set ISTN_DATA_DIR")
def test_the_shipped_itn_as_torchscript_gives_the_parameters_to_a_millionth(tmp_path):
    pair = json.loads((DATA / "pairs_100.json").read_text(encoding="utf-8"))["testing"][3]
    images = {key: str(DATA / pair[key]) for key in ("moving_image", "fixed_image")}
    own = Registration(refine_steps=0, device="cpu")
    expected = own(images)
    example = torch.rand(1, 1, *expected["image"].shape[1:])
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(own.network.istn.itn, example), tmp_path / "itn.ts")
    result = Registration(refine_steps=0, device="cpu", representation=f"torchscript:{tmp_path / 'itn.ts'}")(images)
    torch.testing.assert_close(torch.as_tensor(result["theta"]), torch.as_tensor(expected["theta"]), atol=1e-6, rtol=0)


def test_channels_are_selected_weighted_and_of_one_scale(case):
    folder, _, settings, images, results = case
    maps = written(folder, results[0])
    swapped = {"source": "file", "channels": [1, 0], "weights": [4, 1]}
    result = Registration(refine_steps=0, representation=swapped, **settings)(images | maps)
    expected = torch.as_tensor(results[0]["fixed_representation"])[[1, 0]] * torch.tensor([2.0, 1.0]).view(
        -1, *[1] * len(settings["spatial_size"])
    )
    torch.testing.assert_close(torch.as_tensor(result["fixed_representation"]), expected, atol=1e-6, rtol=0)


def test_maps_of_another_scale_are_brought_between_0_and_1_in_both_images_alike():
    moving, fixed = meta(100 * rand(2, 6, 7)), meta(100 * rand(2, 6, 7, seed=1) - 20)
    pair = {"moving_image": meta(rand(1, 6, 7)), "fixed_image": meta(rand(1, 6, 7))}
    found = RepresentationMapsd("file")(pair | {"moving_maps": moving, "fixed_maps": fixed})
    low = torch.minimum(moving.amin((1, 2)), fixed.amin((1, 2))).as_tensor().view(-1, 1, 1)
    high = torch.maximum(moving.amax((1, 2)), fixed.amax((1, 2))).as_tensor().view(-1, 1, 1)
    for key, own in (("moving_maps", moving), ("fixed_maps", fixed)):
        torch.testing.assert_close(found[key].as_tensor(), (own.as_tensor() - low) / (high - low))


# --- labels, images, MIND --------------------------------------------------------------------------------------------


def test_labels_are_registered_as_simpleitk_resamples_their_masks(case):
    _, files, settings, _, _ = case
    result = Registration(refine_steps=3, representation="labels", **settings)(files)
    grid, dims = result["image"].affine.numpy(), len(settings["spatial_size"])
    reference = sitk.Image(settings["spatial_size"], sitk.sitkFloat64)
    flip = np.diag([-1.0, -1.0, 1.0][:dims])
    spacing = np.linalg.norm(grid[:dims, :dims], axis=0)
    reference.SetSpacing(spacing.tolist())
    reference.SetDirection((flip @ (grid[:dims, :dims] / spacing)).flatten().tolist())
    reference.SetOrigin((flip @ grid[:dims, dims]).tolist())
    label = sitk.ReadImage(files["fixed_label"])
    for channel in (0, 1):
        mask = sitk.Cast(label == channel + 1, sitk.sitkFloat64)
        expected = sitk.GetArrayFromImage(sitk.Resample(mask, reference)).T
        found = result["fixed_representation"][channel].numpy()
        # SimpleITK ends half a voxel beyond the image, at once; what is seen of it is the same
        assert np.abs(found - expected).max() < 1e-4
    assert torch.as_tensor(result["theta"]).any()


def test_mind_is_that_of_the_image_whose_border_goes_on(volume):
    _, _, _, images = volume
    result = Registration("intensities", refine_steps=2, representation="mind", device="cpu", qa=False)(images)
    assert result["fixed_representation"].shape[0] == 12
    inner = mind_ssc(torch.as_tensor(result["fixed_image"])[None], 1, 2)[0]
    assert not torch.allclose(result["fixed_representation"].as_tensor(), inner)  # zeros beyond an image are no edge
    assert torch.as_tensor(result["theta"]).any()


def test_an_inverted_image_is_as_its_own_to_mind():
    pair = {"moving_image": meta(rand(1, 14, 15)), "fixed_image": meta(3 - 2 * rand(1, 14, 15))}
    found = RepresentationMapsd("mind")(pair)
    torch.testing.assert_close(found["moving_maps"].as_tensor(), found["fixed_maps"].as_tensor(), atol=1e-4, rtol=0)


def test_what_a_mask_leaves_out_is_no_part_of_mind(volume, tmp_path):
    _, _, _, images = volume
    affine = nib.load(images["fixed_image"]).affine
    values = nib.load(images["fixed_image"]).get_fdata(dtype=np.float32)
    mask = np.ones(values.shape, np.uint8)
    mask[:4], values[:4] = 0, np.nan
    pair = images | {"fixed_image": write_nifti(tmp_path / "fixed.nii.gz", values, affine),
                     "fixed_mask": write_nifti(tmp_path / "mask.nii.gz", mask, affine)}  # fmt: skip
    result = Registration("intensities", refine_steps=0, representation="mind", device="cpu", qa=False)(pair)
    assert torch.isfinite(result["fixed_representation"]).all()


def test_an_image_is_its_own_representation(volume):
    _, _, _, images = volume
    result = Registration("intensities", refine_steps=0, representation="image", device="cpu", qa=False)(images)
    assert torch.equal(torch.as_tensor(result["fixed_representation"]), torch.as_tensor(result["fixed_image"]))


def test_without_a_network_the_objective_is_of_what_is_registered(volume):
    registration = Registration("intensities", representation="mind", device="cpu")
    assert "structures" in registration.term_weights and "image" not in registration.term_weights
    with pytest.raises(ValueError, match="compare no representation, and mind is given"):
        Registration("intensities", representation="mind", refine_weights="intensities", device="cpu")


# --- networks of somebody else ---------------------------------------------------------------------------------------


class Blur(nn.Module):
    """Two channels of an image, one of them blurred."""

    def forward(self, image):
        return torch.cat([image, nn.functional.avg_pool3d(image, 3, 1, 1)], 1)


class Other(nn.Module):
    """Something that is no representation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, image):
        if self.kind == "complex":
            return torch.complex(image, image)
        if self.kind == "tuple":
            return image, image
        if self.kind == "size":
            return image[:, :, ::2]
        return image.cuda()


def traced(network, path, size=(16, 16, 16)):
    torch.jit.save(torch.jit.trace(network, torch.rand(1, 1, *size)), path)
    return f"torchscript:{path}"


def test_a_network_sees_its_own_spacing_normalization_and_windows(volume):
    folder, _, settings, images = volume
    source = traced(Blur(), folder / "blur.pt", (8, 8, 8))
    whole = {"source": source, "spacing": 2.0, "normalization": "zscore"}
    windows = whole | {"roi_size": [12, 12, 12]}
    found = [Registration(refine_steps=0, representation=one, **settings)(images) for one in (whole, windows)]
    for side in ("moving", "fixed"):
        one, other = (result[f"{side}_representation"].as_tensor() for result in found)
        assert (one - other)[0].abs().max() < 1e-5  # a window's border shows in the blurred channel alone
        assert one.std() > 0.05
    image = read_image(images["fixed_image"])
    blurred = found[0]["fixed_representation"]
    assert 0 <= float(blurred.min()) and float(blurred.max()) <= 1  # z-scores are brought to one scale
    seen = inside(found[0]["fixed_image"])
    correlation = torch.corrcoef(torch.stack([blurred[0][seen], found[0]["fixed_image"][0][seen]]))[0, 1]
    assert correlation > 0.9 and image.std() > 2


def inside(image):
    """Where an image on the registration grid is not beyond its border, nor at it."""
    beyond = (torch.as_tensor(image)[None] <= 0).float()
    return nn.functional.max_pool3d(beyond, 3, 1, 1)[0, 0] == 0


def bundle(folder, spacing=1.5):
    """A MONAI bundle that thresholds an image on voxels of its own."""
    write_json(folder / "configs" / "inference.json", {
        "bundle_root": ".", "device": "cuda",
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "PLI"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [spacing] * 3, "padding_mode": "border"},
        ]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
    })  # fmt: skip
    network = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, 5.0]))
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return f"bundle:{folder}"


def test_a_bundle_represents_images_by_its_own_config_wherever_they_lie(volume, tmp_path):
    _, _, settings, images = volume
    source = bundle(tmp_path / "bundle")
    result = Registration(refine_steps=2, representation=source, **settings)(images)
    for side in ("moving", "fixed"):
        maps, image = (torch.as_tensor(result[key]) for key in (f"{side}_representation", f"{side}_image"))
        seen = inside(image)
        both = torch.stack([maps[0][seen], image[0][seen]])
        assert torch.corrcoef(both)[0, 1] > 0.95  # the image itself, in the right place and on this grid
        assert torch.corrcoef(torch.stack([maps[1][seen], image[0][seen]]))[0, 1] < -0.95
    described = described_representation(source)
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(b"other")
    assert described_representation(source) != described


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tuple", "gives a tuple, one tensor"),
        ("complex", "gives complex numbers"),
        ("size", "must keep an image's size"),
        ("cuda", "it was made for a GPU"),
    ],
)
def test_networks_that_give_no_maps_are_named(volume, tmp_path, kind, words):
    _, _, settings, images = volume
    path = tmp_path / "net.ts"
    if kind == "cuda":
        script = torch.jit.script(Moved())
        torch.jit.save(script, path)
    else:
        torch.jit.save(torch.jit.trace(Other(kind), torch.rand(1, 1, 16, 16, 16)), path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI wraps it)
        Registration(refine_steps=0, representation=f"torchscript:{path}", **settings)(images)
    cause = foreseen_cause(caught.value)
    assert isinstance(cause, ValueError) and words in str(cause) and "net.ts" in str(cause)


class Moved(nn.Module):
    """A network whose script names a GPU."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.to(torch.device("cuda"))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [(None, FileNotFoundError, "no such file"), (b"nothing", ValueError, "is it what torch.jit.save wrote")],
)
def test_files_that_are_no_networks_are_named(volume, tmp_path, content, error, words):
    _, _, settings, images = volume
    path = tmp_path / "net.ts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        Registration(refine_steps=0, representation=f"torchscript:{path}", **settings)(images)
    cause = foreseen_cause(caught.value)
    assert isinstance(cause, error) and words in str(cause) and "net.ts" in str(cause)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("labels:x", "must be one of itn, image"),
        ("torchscript:", "must be one of"),
        ("features", "must be one of"),
        ({"channels": [1]}, "a mapping of source"),
        ({"source": "mind", "layers": 3}, "a mapping of source"),
        ({"source": "mind", "channels": [-1]}, "channels must be a list of whole numbers"),
        ({"source": "mind", "channels": [1, 1]}, "channels must be a list of whole numbers"),
        ({"source": "mind", "weights": [0]}, "weights must be numbers above 0"),
        ({"source": "mind", "channels": [1, 2], "weights": [1]}, "weights must have one number for each"),
        ({"source": "mind", "spacing": 2}, "spacing counts for nothing with source mind"),
        ({"source": "itn", "channels": [0]}, "channels counts for nothing with source itn"),
        ({"source": "bundle:x", "roi_size": [3]}, "roi_size counts for nothing"),
        ({"source": "torchscript:x", "activation": "relu"}, "activation must be one of"),
        ({"source": "torchscript:x", "normalization": "minmax"}, "normalization must be one of"),
        ({"source": "torchscript:x", "spacing": -1}, "spacing must be numbers above 0"),
    ],
)
def test_representations_that_make_no_sense_are_refused_before_any_work(value, words):
    with pytest.raises(ValueError, match=words):
        Representation.of(value)


def maps_file(path, channels, size=(26, 19, 22), affine=None):
    nib.save(nib.Nifti1Image(rand(*size, channels).numpy(), affine), path)
    return str(path)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("channels", "the moving side has 3 channels, the fixed one 2"),
        ("network", "has 3 channel.s., and the network was trained on 2"),
        ("nowhere", "has no affine|lies in two places"),
        ("elsewhere", "lie elsewhere than their image"),
        ("missing", "give moving_maps|registers moving_maps and fixed_maps"),
        ("nan", "NaN"),
        ("select", "there are 2 channels, from 0 on"),
        ("unread", "counts with representation file alone"),
    ],
)
def test_maps_that_do_not_fit_are_named(volume, tmp_path, bad, words):
    folder, files, settings, images = volume
    affines = {side: nib.load(files[f"{side}_image"]).affine for side in ("moving", "fixed")}
    channels = {"channels": (3, 2), "network": (3, 3)}.get(bad, (2, 2))
    maps = {
        f"{side}_maps": maps_file(tmp_path / f"{side}.nii.gz", number, affine=affines[side])
        for side, number in zip(affines, channels, strict=True)
    }
    if bad == "nowhere":
        image = nib.Nifti1Image(rand(5, 6, 7, 2).numpy(), None)
        image.header["sform_code"], image.header["qform_code"] = 0, 0
        nib.save(image, tmp_path / "moving.nii.gz")
    if bad == "elsewhere":
        away = affines["moving"].copy()
        away[:3, 3] += 500
        maps_file(tmp_path / "moving.nii.gz", 2, affine=away)
    if bad == "nan":
        nib.save(nib.Nifti1Image(np.full((26, 19, 22, 2), np.nan, np.float32), affines["moving"]), maps["moving_maps"])
    if bad == "missing":
        del maps["moving_maps"]
    representation = {"select": {"source": "file", "channels": [0, 2]}, "unread": "itn"}.get(bad, "file")
    registration = Registration(refine_steps=0, representation=representation, **settings)
    with pytest.raises(Exception, match="") as caught:
        register_files(registration, tmp_path / "out", **images, **maps)
    cause = foreseen_cause(caught.value)
    assert isinstance(cause, ValueError)
    with pytest.raises(ValueError, match=words):
        raise cause


def test_a_moving_representation_in_the_aligned_world_is_not_taken_for_one_in_its_own(volume, tmp_path):
    _, files, settings, images = volume
    register_files(Registration(refine_steps=0, qa=False, **settings), tmp_path / "first", **images)
    image = read_image(images["moving_image"])
    with pytest.raises(ValueError, match="register --engine none .--world own., or by istn-monai represent"):
        read_maps(tmp_path / "first" / "moving_representation.nii.gz", "moving_maps", image)
    assert len(read_maps(tmp_path / "first" / "fixed_representation.nii.gz", "fixed_maps", image)) == 2
    for world in ("own", "aligned"):
        register_files(Representing(world=world, **settings), tmp_path / world, **images)
    assert len(read_maps(tmp_path / "own" / "moving_0000.nii.gz", "moving_maps", image)) == 2
    with pytest.raises(ValueError, match="register --engine none"):
        read_maps(tmp_path / "aligned" / "moving_0000.nii.gz", "moving_maps", image)
    one = str(tmp_path / "own" / "moving_0000.nii.gz")
    registration = Registration(refine_steps=0, representation="file", **settings)
    with pytest.raises(ValueError, match="moving_maps and fixed_maps are one file"):
        register_files(registration, tmp_path / "out", **images, moving_maps=one, fixed_maps=one)


def test_labels_need_both_and_some_of_their_structures(volume, tmp_path):
    _, files, settings, images = volume
    registration = Registration(refine_steps=0, representation="labels", **settings)
    with pytest.raises(ValueError, match="registers moving_label and fixed_label: give fixed_label"):
        register_files(registration, tmp_path, **images, moving_label=files["moving_label"])
    other = write_nifti(tmp_path / "o.nii.gz", 9 * ball((21, 25, 18), (10, 12, 9), 4),
                        nib.load(files["fixed_image"]).affine)  # fmt: skip
    with pytest.raises(Exception) as caught:  # noqa: PT011
        registration(files | {"fixed_label": other})
    assert "has none of the labels [[1], [2]]" in str(foreseen_cause(caught.value))


# --- files of maps ---------------------------------------------------------------------------------------------------


def test_one_file_for_each_channel_and_nnunets_archive_are_maps_as_one_file_is(tmp_path):
    affine = oblique_affine((6, 7, 8), (1.0, 2.0, 1.5), 2)
    maps, image = rand(3, 6, 7, 8), meta(rand(1, 6, 7, 8), affine)
    for number, channel in enumerate(maps):
        write_nifti(tmp_path / f"maps_{number:04d}.nii.gz", channel.numpy(), affine)
    nib.save(nib.Nifti1Image(maps.movedim(0, -1).numpy(), affine), tmp_path / "all.nii.gz")
    np.savez(tmp_path / "case.npz", probabilities=maps.permute(0, 3, 2, 1).numpy())
    assert len(channel_files(tmp_path / "maps_0000.nii.gz")) == 3
    for name in ("maps_0000.nii.gz", "all.nii.gz", "case.npz"):
        found = read_maps(tmp_path / name, "moving_maps", image)
        assert torch.equal(found.as_tensor(), maps), name
        torch.testing.assert_close(found.affine.float(), torch.as_tensor(affine).float())
    vectors = sitk.Compose([sitk.ReadImage(str(tmp_path / f"maps_{number:04d}.nii.gz")) for number in range(3)])
    sitk.WriteImage(vectors, str(tmp_path / "vectors.nii.gz"))
    assert nib.load(tmp_path / "vectors.nii.gz").shape == (6, 7, 8, 1, 3)
    found = read_maps(tmp_path / "vectors.nii.gz", "moving_maps", image)
    assert torch.equal(found.as_tensor(), maps) and found.meta["filename_or_obj"].endswith("vectors.nii.gz")
    torch.testing.assert_close(found.affine.float(), torch.as_tensor(affine).float(), atol=1e-5, rtol=0)
    np.savez(tmp_path / "other.npz", softmax=maps.numpy())
    np.savez(tmp_path / "turned.npz", probabilities=maps.numpy())
    write_nifti(tmp_path / "maps_0002.nii.gz", maps[0, :-1].numpy(), affine)
    for name, words in (("other.npz", "no archive with probabilities"), ("turned.npz", "must be on its image's grid"),
                        ("maps_0000.nii.gz", "maps_0002.nii.gz is on another grid")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_maps(tmp_path / name, "moving_maps", image)
    (tmp_path / "maps_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match="maps_0001.nii.gz is missing"):
        channel_files(tmp_path / "maps_0000.nii.gz")


def test_a_result_knows_all_files_of_its_maps(volume, tmp_path):
    folder, _, settings, images = volume
    result = Registration(refine_steps=0, **settings)(images)
    start = torch.as_tensor(result["initial_alignment"]).double()
    for side in ("moving", "fixed"):
        maps = result[f"{side}_representation"]
        affine = (start @ maps.affine if side == "moving" else maps.affine).numpy()
        for number, channel in enumerate(maps):
            write_nifti(tmp_path / f"{side}_{number:04d}.nii.gz", channel.numpy(), affine)
    maps = {f"{side}_maps": str(tmp_path / f"{side}_0000.nii.gz") for side in ("moving", "fixed")}
    registration = Registration(refine_steps=0, representation="file", qa=False, **settings)
    assert register_files(registration, tmp_path / "out", **images, **maps)
    assert not register_files(registration, tmp_path / "out", **images, **maps)
    write_nifti(tmp_path / "fixed_0001.nii.gz", rand(32, 24, 28).numpy(), np.eye(4))
    with pytest.raises(FileExistsError, match="fixed_maps_0001: other content"):
        register_files(registration, tmp_path / "out", **images, **maps)


# --- everywhere else -------------------------------------------------------------------------------------------------


def test_datalists_dictionaries_evaluation_and_the_bundle_take_it(volume, tmp_path):
    folder, files, settings, images = volume
    maps = written(tmp_path, Registration(refine_steps=0, **settings)(images))
    pair = files | maps
    datalist = write_json(tmp_path / "pairs.json", {"testing": [pair]})
    registration = Registration(refine_steps=2, representation="file", qa=False, **settings)
    assert not register_datalist(registration, datalist, "testing", tmp_path / "all")
    report = json.loads((tmp_path / "all" / "pair_0000" / "report.json").read_text(encoding="utf-8"))
    assert {"moving_maps", "fixed_maps"} <= set(report["inputs"]) and report["options"]["representation"] == "file"
    expected = registration(images | maps)
    registered = RegisterISTNd(refine_steps=2, representation="file", **settings)(images | maps)
    assert_same(registered, expected)
    given = {name: value for name, value in settings.items() if name != "ckpt_dir"}
    weights = folder / "models" / "model.pt"
    for source in ("file", "labels"):
        out = tmp_path / f"evaluation_{source}"
        evaluate_datalist(BUNDLE, datalist, out, weights, 2, representation=source, qa=True, **given)
        content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        assert content["options"]["representation"] == source
        dice = {method: values["dice_merged"]["mean"] for method, values in content["summary"].items()}
        assert len(set(dice.values())) == 3, dice
    run(run_id="refinement", config_file=config("inference", "refine"), representation="file", refine_steps=2,
        output_dir=str(tmp_path / "bundle"), **images, **maps, **settings)  # fmt: skip
    other = json.loads((tmp_path / "bundle" / "report.json").read_text(encoding="utf-8"))
    first = json.loads((tmp_path / "all" / "pair_0000" / "report.json").read_text(encoding="utf-8"))
    assert other["refinement"]["objective_end"] == pytest.approx(first["refinement"]["objective_end"], abs=1e-6)


def test_both_ways_swap_what_is_registered(volume, tmp_path):
    _, _, settings, images = volume
    maps = written(tmp_path, Registration(refine_steps=0, **settings)(images))
    found = Registration(refine_steps=2, representation="file", both_ways=True, **settings)(images | maps)
    own = Registration(refine_steps=2, both_ways=True, **settings)(images)
    torch.testing.assert_close(found["pred"].meta["back_ddf"], own["pred"].meta["back_ddf"], atol=1e-5, rtol=0)


def test_maps_of_one_side_are_refused():
    with pytest.raises(ValueError, match="must be of one shape"):
        representations_of({"moving_maps": torch.rand(1, 2, 5, 5)})
    maps, others = representations_of({"moving_mask": torch.ones(1, 1, 5, 5)})
    assert maps is None and set(others) == {"moving_mask"}


# --- training on what does not learn ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small synthetic set."""
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder, (32, 32, 32), train=2, validation=2, test=2)
    return folder


@pytest.mark.parametrize(("loss", "source"), [("s", "mind"), ("u", "mind"), ("s", "torchscript")])
def test_an_stn_learns_on_a_frozen_representation_and_registers_with_it(tmp_path, data, loss, source):
    source = traced(Blur(), tmp_path / "blur.ts", (8, 8, 8)) if source == "torchscript" else source
    options = {
        "output_dir": str(tmp_path / "run"), "dataset_dir": str(data), "max_epochs": 1, "loss": loss, "device": "cpu",
        "spatial_size": [24, 24, 24], "control_spacing": 12, "itn_def": source,
    }  # fmt: skip
    workflow = ConfigWorkflow(config("train"), logging_file=False, workflow_type="train", **options)
    workflow.initialize()
    workflow.run()
    file = tmp_path / "run" / "models" / "model.pt"
    settings = read_weights(file).settings
    assert settings.frozen and settings.stn_channels == (4 if "blur" in source else 24)
    pairs = json.loads((data / "pairs.json").read_text(encoding="utf-8"))["testing"]
    pair = {key: str(data / pairs[0][key]) for key in ("moving_image", "fixed_image")}
    result = Registration(file, refine_steps=2, device="cpu")(pair)
    assert len(result["moving_representation"]) == settings.stn_channels // 2
    if "blur" in source:
        traced(Other("size"), tmp_path / "blur.ts")
        with pytest.raises(ValueError, match="is another file than the one in training"):
            settings.network()


def test_a_frozen_itn_goes_with_losses_that_do_not_teach_it():
    common = {"spatial_size": (16, 16, 16), "itn_def": "mind"}
    with pytest.raises(ValueError, match="teaches the ITN, and itn_def"):
        NetworkSettings(loss="i", **common)
    settings = NetworkSettings(loss="u", **common)
    assert settings.stn_channels == 24
    assert TrainingLoss("u", settings=settings).variant == "r" and TrainingLoss("u").variant == "u"
    for wrong in ("labels", {"source": "torchscript:x", "spacing": 2}):
        with pytest.raises(ValueError, match="FrozenITN represents images on the registration grid"):
            FrozenITN(wrong)


def test_memory_pairs_take_maps_as_tensors():
    image = MetaTensor(rand(1, 12, 13))
    maps = MetaTensor(rand(3, 12, 13))
    pair = {"moving_image": image, "fixed_image": image, "moving_maps": maps, "fixed_maps": maps}
    assert torch.equal(RepresentationMapsd("file")(pair)["fixed_maps"].as_tensor(), maps.as_tensor())
