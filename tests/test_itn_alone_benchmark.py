"""What the training of an ITN by itself draws."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import max_abs

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import itn_alone


def case(size=(38, 50, 36)):
    """A bright block with a structure in each half, in an image that is dark but nowhere 0."""
    image = torch.full((1, 1, *size), 0.2)
    image[..., 8:-8, 8:-8, 8:-8] = 0.8
    structures = torch.zeros(1, 2, *size)
    structures[:, 0, 10:18, 10:-10, 10:-10] = 1
    structures[:, 1, 20:28, 10:-10, 10:-10] = 1
    return image, structures


def draws(seed, teacher=None):
    return itn_alone.Draws([case()], teacher, np.random.default_rng(seed))


def test_a_draw_is_a_moved_case_in_which_structures_stay_where_the_image_is_bright():
    draw = draws(0)
    for _ in range(10):
        image, structures = draw.moved()
        assert image.shape == (1, 1, *itn_alone.SIZE) and structures.shape == (1, 2, *itn_alone.SIZE)
        inside = structures.sum(1, keepdim=True) > 0.99
        assert inside.any() and image[inside].min() > 0.75
    same, other = draws(1), draws(1)
    assert all(max_abs(*pair) == 0 for pair in zip(same(), other(), strict=True))


def test_a_curve_turns_images_round_and_leaves_what_lies_beyond_them():
    draw = draws(2)
    image = draw.moved()[0]
    beyond = image <= 0
    inverted = 0
    for _ in range(20):
        mapped = draw.by_curve(image)
        assert (mapped[beyond] == 0).all() and 0 <= mapped.min() and mapped.max() <= 1
        inverted += bool(mapped[image > 0.75].mean() < mapped[(image > 0.1) & (image < 0.25)].mean())
    assert 4 < inverted < 20


def test_what_is_learned_in_any_contrast_is_the_mean_of_labels_and_teacher(monkeypatch):
    monkeypatch.setattr(itn_alone, "KEPT", 6)
    seen = []

    def teacher(image):
        seen.append(image)
        return torch.full((1, 2, *itn_alone.SIZE), 0.5)

    draw = draws(3, teacher)
    found = [draw()[1] for _ in range(30)]
    assert len(seen) == len(draw.kept) == 6  # the rest are kept ones, in other contrasts
    assert all(each.min() == 0.25 and each.max() == 0.75 for each in found)


@pytest.mark.parametrize("wrong", [0.0, 4.0])
def test_the_loss_falls_with_the_structures_found(wrong):
    structures = case()[1]
    wanted = torch.cat([1 - structures.sum(1, keepdim=True), structures], 1)
    value = itn_alone.loss(8 * wanted - wrong * wanted.roll(1, 1), structures)
    assert value < itn_alone.loss(torch.zeros_like(wanted), structures)
    perfect = itn_alone.loss(60 * wanted, structures)
    assert perfect == pytest.approx(0, abs=1e-5) and perfect < value
