"""Random contrasts: values by hand, what stays, what is drawn anew."""

import numpy as np
import pytest
import torch
from helpers import meta, rand
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd

from istn_monai import NormalizeIntensityRanged, RandContrastMapd, RandImageFromLabelsd
from istn_monai.transforms.contrast import class_centers, nearest, piecewise_linear, structures

AFFINE = torch.tensor([[0.0, -1.5, 0.0, 7.0], [1.2, 0.0, 0.3, -3.0], [0.0, 0.2, 2.0, 5.0], [0.0, 0.0, 0.0, 1.0]])


def image_of(*size, seed=0, channels=1):
    """An image in [0.1, 1], so that nothing is 0 by chance."""
    return meta(0.1 + 0.9 * rand(channels, *size, seed=seed))


def always(kind, *keys, seed=0, **options):
    return kind(*keys, prob=1.0, **options).set_random_state(seed)


def test_a_curve_by_hand():
    heights = torch.tensor([0.0, 1.0, 0.5])
    values = torch.tensor([0.0, 0.25, 0.5, 0.6, 1.0, 2.0, -1.0])
    expected = torch.tensor([0.0, 0.5, 1.0, 0.9, 0.5, 0.5, 0.0])
    torch.testing.assert_close(piecewise_linear(values, heights), expected, atol=1e-6, rtol=0)
    curve = np.interp(values.clamp(0, 1), [0, 0.5, 1], heights)
    np.testing.assert_allclose(piecewise_linear(values, heights), curve, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 24), (12, 10, 14)], ids=["2-D", "3-D"])
def test_two_knots_keep_or_invert(size):
    image = image_of(*size)
    low, high = (np.percentile(image, q) for q in (0.5, 99.5))
    kept, inverted = set(), 0
    for seed in range(8):
        mapped = always(RandContrastMapd, "image", knots=(2, 2), seed=seed)({"image": image})["image"]
        plain = ((image.as_tensor() - low) / (high - low)).clamp(0, 1)
        # scaled between its percentiles, which of inverted values are the same ones from above
        same, other = (float((mapped.as_tensor() - one).abs().max()) for one in (plain, 1 - plain))
        assert min(same, other) < 0.01
        kept.add(same < other)
        inverted += other < same
    assert kept == {True, False} and 0 < inverted < 8


def test_what_is_beyond_the_image_stays():
    image = image_of(20, 24)
    image[:, :5] = 0
    for seed in range(5):
        mapped = always(RandContrastMapd, "image", seed=seed)({"image": image})["image"]
        assert (mapped[:, :5] == 0).all() and 0 <= mapped.min() and mapped.max() == 1
    changed = (always(RandContrastMapd, "image", keep_zeros=False, knots=(2, 2), seed=seed) for seed in range(8))
    assert any((one({"image": image})["image"][:, :5] > 0.9).all() for one in changed)
    dark = image.clone()
    dark[:, 10, 12] = 0  # a dark voxel is no hole
    inverted = (always(RandContrastMapd, "image", knots=(2, 2), seed=seed)({"image": dark}) for seed in range(8))
    assert any(one["image"][0, 10, 12] > 0.9 for one in inverted)
    empty = meta(torch.zeros(1, 6, 6))
    assert not always(RandContrastMapd, "image")({"image": empty})["image"].any()


@pytest.mark.parametrize(
    "transform",
    [RandContrastMapd("image"), RandImageFromLabelsd("image", "label")],
    ids=["curve", "labels"],
)
def test_seeds_repeat_and_probability_counts(transform):
    data = {"image": image_of(16, 14), "label": meta((rand(2, 16, 14, seed=1) > 0.9).float()), "name": "x"}
    before = {key: data[key].clone() for key in ("image", "label")}
    draws = [Compose([transform]).set_random_state(seed)(data)["image"] for seed in (1, 1, *range(2, 42))]
    assert torch.equal(draws[0], draws[1])
    changed = sum(not torch.equal(draw, before["image"]) for draw in draws[2:])
    assert 10 <= changed <= 30  # of 40, at 0.5
    assert all(torch.equal(data[key], before[key]) for key in before)  # the input stays


@pytest.mark.parametrize("kind", [RandContrastMapd, RandImageFromLabelsd])
def test_geometry_and_metadata_stay(kind):
    image = image_of(8, 9, 7, channels=2)
    image.affine = AFFINE
    image.meta["filename"] = "a.nii.gz"
    label = meta((rand(1, 8, 9, 7, seed=2) > 0.5).float())
    keys = ("image",) if kind is RandContrastMapd else ("image", "label")
    result = always(kind, *keys)({"image": image, "label": label})["image"]
    assert result.shape == image.shape and result.dtype == torch.float32
    assert torch.equal(result.affine, AFFINE.double()) and result.meta["filename"] == "a.nii.gz"
    assert not result.requires_grad and not torch.equal(result[0], result[1])


def test_keys_of_one_call_have_the_same_curve():
    image = image_of(12, 13)
    data = {"a": image, "b": image.clone()}
    both = always(RandContrastMapd, ["a", "b"])(data)
    assert torch.equal(both["a"], both["b"])
    apart = Compose([RandContrastMapd("a", prob=1.0), RandContrastMapd("b", prob=1.0)]).set_random_state(0)(data)
    assert not torch.equal(apart["a"], apart["b"])


def test_classes_by_hand():
    values = torch.tensor([0.0, 0.1, 0.2, 0.8, 0.9, 1.0])
    centers = class_centers(values, 2)
    torch.testing.assert_close(centers, torch.tensor([0.1, 0.9]), atol=1e-6, rtol=0)
    assert nearest(values, centers).tolist() == [0, 0, 0, 1, 1, 1]
    assert class_centers(values, 1).item() == pytest.approx(0.5)


def test_an_image_of_labels_alone_is_flat_in_each():
    label = torch.zeros(1, 10, 12)
    label[0, :4], label[0, 4:7], label[0, 7:] = 3, 8, 5
    draw = always(RandImageFromLabelsd, "image", "label", noise=0.0)
    drawn = draw({"image": image_of(10, 12), "label": meta(label)})["image"][0]
    values = [drawn[rows].unique() for rows in (slice(0, 4), slice(4, 7), slice(7, 10))]
    assert [len(value) for value in values] == [1, 1, 1] and len(torch.cat(values).unique()) == 3
    assert all(0 <= value <= 1 for value in torch.cat(values))


def test_partial_volumes_lie_between_the_means():
    label = torch.zeros(2, 9, 9)
    label[0, :4], label[1, 5:] = 1, 1
    label[:, 4] = 0.5
    drawn = always(RandImageFromLabelsd, "image", "label", noise=0.0)({"image": image_of(9, 9), "label": meta(label)})
    rows = drawn["image"][0]
    torch.testing.assert_close(rows[4], (rows[0] + rows[8]) / 2, atol=1e-6, rtol=0)


def test_the_rest_is_filled_from_the_image():
    image = meta(torch.cat([torch.full((1, 10, 5), 0.2), torch.full((1, 10, 5), 0.7), torch.zeros(1, 10, 3)], dim=2))
    label = meta(torch.zeros(1, 10, 13))
    label[0, 3:6, 3:6] = 1
    drawn = always(RandImageFromLabelsd, "image", "label", noise=0.0, classes=(2, 2))({"image": image, "label": label})
    result = drawn["image"][0]
    dark, bright, structure = result[0, 0], result[0, 9], result[4, 4]
    assert (
        (result[:3, :5] == dark).all() and (result[:, 6:10] == bright).all() and (result[3:6, 3:6] == structure).all()
    )
    assert (result[:, 10:] == 0).all() and len({float(dark), float(bright), float(structure)}) == 3


def test_noise_has_at_most_the_deviation_that_is_asked_for():
    label, image = meta(torch.ones(1, 60, 60)), image_of(60, 60)
    deviations = []
    for seed in range(20):
        drawn = always(RandImageFromLabelsd, "image", "label", noise=0.05, seed=seed)({"image": image, "label": label})
        deviations.append(float(drawn["image"].std()))
    assert max(deviations) < 0.055 and max(deviations) > 0.02


def test_structures_of_a_label_map_and_of_maps():
    label = torch.tensor([[[0, 2, 2, 7]]])
    assert structures(label).tolist() == [[[0, 1, 1, 0]], [[0, 0, 0, 1]]]
    maps = torch.tensor([[[0.0, 0.5]], [[1.0, 0.5]]])
    assert torch.equal(structures(maps), maps)


def test_an_image_without_its_label_stays():
    data = {"image": image_of(6, 6)}
    draw = always(RandImageFromLabelsd, "image", "label", allow_missing_keys=True)
    assert torch.equal(draw(data)["image"], data["image"])
    for strict in (always(RandContrastMapd, "other"), always(RandImageFromLabelsd, "image", "label")):
        with pytest.raises(KeyError):
            strict(data)


def test_maps_of_landmarks_are_not_drawn():
    image, label = image_of(20, 20), MetaTensor(torch.zeros(2, 20, 20))
    label[0, 2:9, 2:9], label[1, 12:18, 12:18] = 1, 1
    drawn = [
        always(RandImageFromLabelsd, "image", "label", noise=0.0, channels=channels)({"image": image, "label": own})[
            "image"
        ]
        for channels, own in ((1, label), (None, label[:1]))
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandContrastMapd("a", knots=(1, 3)), "knots must be two whole numbers from 2 on"),
        (lambda: RandContrastMapd("a", knots=(4, 3)), "the smaller one first"),
        (lambda: RandContrastMapd("a", knots=[3]), "knots"),
        (lambda: RandImageFromLabelsd("a", "b", classes=(0, 3)), "classes must be two whole numbers from 1 on"),
        (lambda: RandImageFromLabelsd(["a", "b"], "c"), "one label for each of keys"),
    ],
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("kind", ["meta", "tensor", "array"])
def test_images_of_any_kind_and_dtype(kind, dtype):
    if kind == "array" and dtype == torch.bfloat16:
        pytest.skip("NumPy has none")
    values, label = (200 * rand(1, 16, 20)).to(dtype), (rand(1, 16, 20, seed=1) > 0.7).to(torch.uint8)
    of = {"meta": MetaTensor, "tensor": torch.as_tensor, "array": lambda x: x.numpy()}[kind]
    for transform in (RandContrastMapd("image", prob=1.0), RandImageFromLabelsd("image", "label", prob=1.0)):
        drawn = transform.set_random_state(0)({"image": of(values), "label": of(label)})["image"]
        assert isinstance(drawn, torch.Tensor) and isinstance(drawn, MetaTensor) == (kind == "meta")
        assert drawn.shape == values.shape and 0 <= drawn.min() < drawn.max() <= 1


def test_what_was_done_to_an_image_before_can_be_inverted():
    """Intensities alone change here, and MONAI's record of a resampling stays."""
    image = MetaTensor(rand(1, 8, 9, 7), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    chain = Compose([Spacingd("image", 1.0), RandContrastMapd("image", prob=1.0), NormalizeIntensityRanged("image")])
    done = chain({"image": image})
    assert done["image"].shape != image.shape and chain.transforms[0].inverse(done)["image"].shape == image.shape
