"""Where domains of B-splines and fields end: on the same side as in SimpleITK, to the last bit, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import DIMS, rng

from istn_monai.apply import apply_transform
from istn_monai.geometry.domains import SAME_ULPS, after, before
from istn_monai.io.itk_transforms import read_transform

ORIGIN, SPACING, SIZE = (-17.3, 4.7, 33.1), (0.9, 1.1, 1.3), (9, 8, 7)
ROTATION = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.1, 0.05, -0.03).GetMatrix(), (3, 3))
AXES = {"aligned": np.eye(3), "flipped": np.diag([-1.0, 1, -1]), "turned": np.eye(3)[[2, 0, 1]], "oblique": ROTATION}


def lattice(axes, dims=3):
    """An image that a domain is flush with."""
    image = sitk.Image(SIZE[:dims], sitk.sitkFloat32)
    image.SetOrigin(ORIGIN[:dims])
    image.SetSpacing(SPACING[:dims])
    image.SetDirection(np.asarray(axes)[:dims, :dims].ravel().tolist())
    return image


def spline(image, size=3.0, mesh=(3, 2, 4), seed=0):
    """A B-spline whose domain is from the first to the last center of an image."""
    dims = image.GetDimension()
    result = sitk.BSplineTransform(dims, 3)
    result.SetTransformDomainOrigin(image.GetOrigin())
    result.SetTransformDomainDirection(image.GetDirection())
    extent = [step * (n - 1) for step, n in zip(image.GetSpacing(), image.GetSize(), strict=True)]
    result.SetTransformDomainPhysicalDimensions(extent)
    result.SetTransformDomainMeshSize(mesh[:dims])
    result.SetParameters((size + rng(seed).normal(size=len(result.GetParameters())) * size / 4).tolist())
    return result


def field(image):
    """A field on the voxels of an image."""
    dims = image.GetDimension()
    vectors = sitk.GetImageFromArray(3 + rng(1).normal(size=(*image.GetSize()[::-1], dims)), isVector=True)
    vectors.CopyInformation(image)
    return sitk.DisplacementFieldTransform(vectors)


def rim(image, ends):
    """Points on the faces of an image's box, from one index before the first center to another one after the last."""
    dims = image.GetDimension()
    index = rng(2).uniform(-1, 9, (600, dims)).clip(0, np.array(image.GetSize()) - 1)
    index[np.arange(600), np.arange(600) % dims] = np.where(
        np.arange(600) % 2, ends[0], np.array(image.GetSize())[np.arange(600) % dims] + ends[1]
    )
    return np.array([image.TransformContinuousIndexToPhysicalPoint(place.tolist()) for place in index])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("axes", ["aligned", "flipped", "oblique"])
@pytest.mark.parametrize(("made", "ends"), [(spline, (0.0, -1.0)), (field, (-0.5, -0.5))])
def test_points_on_the_rim_of_a_domain_go_where_simpleitk_takes_them(tmp_path, dims, axes, made, ends):
    """Some of them may be inside and others outside, as rounding has it."""
    image = lattice(AXES[axes], dims)
    transform = made(image)
    sitk.WriteTransform(transform, str(tmp_path / "t.h5"))
    points = rim(image, ends)
    expected = np.array([transform.TransformPoint(point.tolist()) for point in points])
    still = (expected == points).all(axis=1)
    assert still.sum() < len(points) and (still.any() or axes == "flipped")
    mirror = np.array([-1.0, -1, 1][:dims])
    found = read_transform(tmp_path / "t.h5").transform_points(torch.as_tensor((points * mirror).T)).numpy().T * mirror
    assert np.abs(found - expected).max() < 1e-9


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("made", [spline, field])
def test_images_flush_with_a_domain_are_resampled_as_by_simpleitk(tmp_path, axes, made):
    """Of a field twice as many voxels, so that centers lie on its rim."""
    image = sitk.GetImageFromArray(rng(3).normal(size=SIZE[::-1]).astype(np.float32))
    image.CopyInformation(lattice(AXES[axes]))
    if axes == "oblique":  # the image's own rim is not to the last bit
        image.SetOrigin([place + 0.2 for place in ORIGIN])
    grid = lattice(AXES[axes])
    if made is field:
        grid = sitk.Image([2 * n + 1 for n in SIZE], sitk.sitkFloat32)
        grid.SetSpacing([step / 2 for step in SPACING])
        grid.SetDirection(image.GetDirection())
        grid.SetOrigin(lattice(AXES[axes]).TransformContinuousIndexToPhysicalPoint([-0.5] * 3))
    transform = made(lattice(AXES[axes]))
    files = {name: str(tmp_path / name) for name in ("m.mha", "g.mha", "t.h5", "o.nii.gz")}
    sitk.WriteImage(image, files["m.mha"])
    sitk.WriteImage(grid, files["g.mha"])
    sitk.WriteTransform(transform, files["t.h5"])
    image, grid = (sitk.ReadImage(files[name]) for name in ("m.mha", "g.mha"))  # text has fewer digits
    apply_transform(files["t.h5"], files["m.mha"], files["o.nii.gz"], reference=files["g.mha"], interpolation="linear")
    darkest = float(sitk.GetArrayFromImage(image).min())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, sitk.sitkLinear, darkest))
    assert (expected != darkest).mean() > 0.2
    assert np.abs(sitk.GetArrayFromImage(sitk.ReadImage(files["o.nii.gz"])) - expected).max() < 1e-4


def test_of_an_oblique_nifti_only_voxels_on_the_rim_may_differ_from_simpleitk(tmp_path):
    """Its header has numbers of 32 bits, which nibabel and ITK put together otherwise."""
    image = sitk.GetImageFromArray(rng(3).normal(size=SIZE[::-1]).astype(np.float32))
    image.CopyInformation(lattice(ROTATION))
    files = {name: str(tmp_path / name) for name in ("m.nii.gz", "t.h5", "o.nii.gz")}
    sitk.WriteImage(image, files["m.nii.gz"])
    image = sitk.ReadImage(files["m.nii.gz"])
    transform = spline(image)
    sitk.WriteTransform(transform, files["t.h5"])
    apply_transform(files["t.h5"], files["m.nii.gz"], files["o.nii.gz"], files["m.nii.gz"], interpolation="linear")
    darkest = float(sitk.GetArrayFromImage(image).min())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear, darkest))
    differ = np.abs(sitk.GetArrayFromImage(sitk.ReadImage(files["o.nii.gz"])) - expected) > 1e-4
    inner = (slice(1, -1),) * 3  # the domain ends at the outermost centers
    assert not differ[inner].any() and expected[inner].std() > 0.3


def test_the_upper_limit_of_a_spline_is_itks():
    """Its domain ends at 10 mm, where the index is 11; ITK takes the next four numbers for it, too."""
    transform = sitk.BSplineTransform(2, 3)
    transform.SetTransformDomainPhysicalDimensions((10, 10))
    transform.SetTransformDomainMeshSize((10, 10))
    transform.SetParameters([1.0] * len(transform.GetParameters()))
    index = torch.tensor([11.0], dtype=torch.float64)
    last = float(after(index))
    assert SAME_ULPS == 4 and transform.TransformPoint((last - 1, 5.0))[0] > last - 0.5
    beyond = float(np.nextafter(last, np.inf))
    assert transform.TransformPoint((beyond - 1, 5.0))[0] == beyond - 1
    assert before(index) < index == np.nextafter(before(index).numpy(), np.inf)


def test_near_the_rim_of_several_domains_points_have_their_inverse_and_none_a_wrong_one(tmp_path):
    """What a registration writes: a start and B-splines of one domain; some points pass it by, in some of them."""
    parts = [sitk.TranslationTransform(3, (0, -4, -2))]
    for mesh, size, seed in ((2, 3, 0), (4, 2, 1), (8, 1, 2)):
        single = sitk.BSplineTransform(3, 3)
        single.SetTransformDomainPhysicalDimensions((48, 48, 48))
        single.SetTransformDomainMeshSize([mesh] * 3)
        single.SetParameters((rng(seed).normal(size=len(single.GetParameters())) * size).tolist())
        parts.append(single)
    whole = sitk.CompositeTransform(parts)
    sitk.WriteTransform(whole, str(tmp_path / "t.h5"))
    transform = read_transform(tmp_path / "t.h5")
    points = 48 * rng(4).random((4000, 3))
    rows, axes = np.arange(4000), rng(5).integers(0, 3, 4000)
    points[rows, axes] = np.where(rows % 2, 48, 0) + rng(6).uniform(-1.5, 1.5, 4000)
    moved = np.array([whole.TransformPoint(point.tolist()) for point in points])
    mirror = np.array([-1.0, -1, 1])
    found = transform.inverse_points(torch.as_tensor((moved * mirror).T)).numpy().T * mirror
    known = np.isfinite(found).all(axis=1)
    assert (~known).sum() <= 2  # a second place in a domain would lead there, the first one leads nowhere
    moved, found = moved[known], found[known]
    again = np.array([whole.TransformPoint(point.tolist()) for point in found])
    assert np.abs(again - moved).max() < 1e-3
