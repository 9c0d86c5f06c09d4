"""Transform files: what SimpleITK writes and reads for us, checked with itk, which reads them by other wrappers.

That the maps themselves are right is in test_world_transform.py; here are the files, number by number.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import DIMS, apply, itk_affine, max_abs, oblique_affine, parameters, rng

from istn_monai.apply import apply_transform
from istn_monai.geometry.world_transform import WorldAffine, WorldBSpline, WorldField, WorldTransform
from istn_monai.io.itk_transforms import read_transform, write_displacement, write_transform

SHAPES = {2: (7, 5), 3: (7, 5, 6)}
SPACING = {2: (4.0, 2.5), 3: (4.0, 2.5, 3.2)}
HEADER = "#Insight Transform File V1.0\n"
EXACT = 1e-12


def flip(dims):
    """``(D, D)``, RAS to LPS and back."""
    return np.diag([-1.0, -1.0, 1.0][:dims])


def text(number, kind, values, fixed):
    """One transform of ITK's text format."""
    numbers = [" ".join(map(str, part)) for part in (values, fixed)]
    return f"#Transform {number}\nTransform: {kind}\nParameters: {numbers[0]}\nFixedParameters: {numbers[1]}\n"


def lattice(dims, seed, fixed_size=0):
    """Displacements ``(D, *lattice)`` and the oblique affine of their points."""
    shape = tuple(n + fixed_size for n in SHAPES[dims])
    affine = oblique_affine(shape, SPACING[dims], seed, center=[9.0, -4.0, 6.0][:dims])
    return torch.as_tensor(rng(seed).normal(size=(dims, *shape))), torch.as_tensor(affine)


def composite(dims):
    """An affine part, two B-splines and a field, all different."""
    matrix = oblique_affine((1,) * dims, (1.1, 0.9, 1.2)[:dims], 5, center=[3.0, -2.0, 1.0][:dims])
    splines = [WorldBSpline(*lattice(dims, seed, extra)) for seed, extra in ((6, 0), (7, 2))]
    return WorldTransform([WorldAffine(matrix), *splines, WorldField(*lattice(dims, 8))], dims)


def expected_numbers(part):
    """Class, parameters and fixed parameters that ITK documents for a part, in plain numpy."""
    if isinstance(part, WorldAffine):
        dims = len(part.matrix) - 1
        mirror = np.diag([*flip(dims).diagonal(), 1.0])
        matrix = mirror @ part.matrix.numpy() @ mirror
        return "AffineTransform", [*matrix[:dims, :dims].ravel(), *matrix[:dims, dims]], [0.0] * dims
    mirror = flip(len(part.values))
    columns = mirror @ part.affine.numpy()[:-1]
    spacing = np.linalg.norm(columns[:, :-1], axis=0)
    fixed = [*part.values.shape[1:], *columns[:, -1], *spacing, *(columns[:, :-1] / spacing).ravel()]
    moved = np.tensordot(mirror, part.values.numpy(), axes=1)
    by_point = isinstance(part, WorldField)  # all components of a point, or all points of a component, x fastest
    values = (
        moved.transpose(*range(moved.ndim - 1, 0, -1), 0)
        if by_point
        else moved.transpose(0, *range(moved.ndim - 1, 0, -1))
    )
    return "DisplacementFieldTransform" if by_point else "BSplineTransform", values.ravel(), fixed


def members_by_itk(file):
    """Class and numbers of all transforms of a composite file, as itk reads them."""
    (read,) = itk.transformread(str(file))
    read = itk.down_cast(read)
    singles = [read.GetNthTransform(number) for number in range(read.GetNumberOfTransforms())]
    return [(t.GetNameOfClass(), list(t.GetParameters()), list(t.GetFixedParameters())) for t in singles]


def members_by_simpleitk(file):
    """Likewise SimpleITK."""
    read = sitk.CompositeTransform(sitk.ReadTransform(str(file)))
    singles = [read.GetNthTransform(number) for number in range(read.GetNumberOfTransforms())]
    return [(t.GetName(), t.GetParameters(), t.GetFixedParameters()) for t in singles]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("members", [members_by_itk, members_by_simpleitk])
def test_a_written_file_holds_the_numbers_that_itk_documents(tmp_path, dims, suffix, members):
    transform = composite(dims)
    found = members(write_transform(transform, tmp_path / f"transform{suffix}"))
    assert len(found) == 4
    for (name, values, fixed), part in zip(found, transform.components, strict=True):
        kind, expected, expected_fixed = expected_numbers(part)
        assert name == kind
        assert max_abs(values, expected) < EXACT and max_abs(fixed, expected_fixed) < EXACT


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_what_is_read_back_has_the_same_numbers(tmp_path, dims, suffix):
    transform = composite(dims)
    back = read_transform(write_transform(transform, tmp_path / f"transform{suffix}"), dims)
    assert [type(part) for part in back.components] == [type(part) for part in transform.components]
    for found, expected in zip(back.components, transform.components, strict=True):
        for name, value in vars(expected).items():
            assert max_abs(getattr(found, name), value) < EXACT, name


def test_threads_do_not_break_each_others_files(tmp_path):
    """HDF5 is not made for threads, and SimpleITK lets them run: unguarded, this ends in a crash."""
    transforms = [WorldTransform([WorldAffine(np.diag([2.0 + n, 1.0, 1.0, 1.0]))], 3) for n in range(8)]

    def written_and_read(turn):
        file = write_transform(transforms[turn % 8], tmp_path / f"{turn}.h5")
        return float(read_transform(file, 3).components[0].matrix[0, 0])

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(written_and_read, range(400))) == [2.0 + n % 8 for n in range(400)]
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before


def two_transforms():
    """A shift and a stretch that do not commute, by itk, and the one matrix that they make, the last one first."""
    shift, stretch = np.eye(4), np.diag([2.0, 0.5, 1.5, 1.0])
    shift[:3, 3] = [3.0, -4.0, 5.0]
    return [itk_affine(shift), itk_affine(stretch)], shift @ stretch


@pytest.mark.parametrize("suffix", [".txt", ".tfm", ".mat", ".h5"])
@pytest.mark.parametrize("shown", [True, False])
def test_of_several_transforms_in_a_file_none_is_lost(tmp_path, suffix, shown):
    """SimpleITK takes the first and warns, if warnings are shown; the last acts first."""
    transforms, matrix = two_transforms()
    itk.transformwrite(transforms, str(tmp_path / f"two{suffix}"))
    points = rng(1).uniform(-50, 50, (3, 20))
    mirror = np.diag([-1.0, -1.0, 1.0, 1.0])
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    try:
        found = read_transform(tmp_path / f"two{suffix}", 3).transform_points(torch.as_tensor(points))
        assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown  # as its user has set it
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
    assert max_abs(found, apply(mirror @ matrix @ mirror, points)) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_parts_of_a_composite_file_of_itk_are_in_order(tmp_path, dims):
    """Of itk's own making, not ours, with a B-spline that SimpleITK calls by another name where it is not cubic."""
    spline = itk.BSplineTransform[itk.D, dims, 3].New()
    spline.SetTransformDomainMeshSize([4, 3, 5][:dims])
    spline.SetTransformDomainPhysicalDimensions([30.0, 20.0, 25.0][:dims])
    spline.SetTransformDomainOrigin([-3.0, 4.0, 2.0][:dims])
    spline.SetParametersByValue(parameters(rng(2).normal(size=spline.GetNumberOfParameters())))
    matrix = np.eye(dims + 1)
    matrix[0, :dims] += 0.3
    whole = itk.CompositeTransform[itk.D, dims].New()
    whole.AddTransform(itk_affine(matrix))
    whole.AddTransform(spline)
    itk.transformwrite([whole], str(tmp_path / "whole.h5"))
    points = np.array([4.0, 12.0, 9.0])[:dims, None] + rng(3).uniform(-5, 5, (dims, 30))
    expected = np.array([list(whole.TransformPoint(point.tolist())) for point in points.T]).T
    assert np.abs(expected - apply(matrix, points)).max() > 0.3  # the spline does something there
    found = read_transform(tmp_path / "whole.h5").transform_points(torch.as_tensor(flip(dims) @ points))
    assert max_abs(flip(dims) @ found.numpy(), expected) < 1e-9


def test_composites_in_composites_are_unfolded():
    """No file holds them, hosts may."""
    from istn_monai.io.itk_transforms import components_from_itk

    inner = sitk.CompositeTransform(
        [sitk.ScaleTransform(3, (2.0, 1.0, 1.0)), sitk.TranslationTransform(3, (0, 7.0, 0))]
    )
    nested = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 0, 0)), inner])
    point = torch.tensor([[-3.0], [-1.0], [5.0]], dtype=torch.float64)  # (3, 1, 5) in LPS
    moved = WorldTransform(components_from_itk(nested), 3).transform_points(point).flatten() * torch.tensor([-1, -1, 1])
    assert moved.tolist() == [7.0, 8.0, 5.0] == list(nested.TransformPoint((3.0, 1.0, 5.0)))


#: text of a file, and the matrix in LPS; the first three kinds have no class in SimpleITK
CENTERED = "1 0.2 0 0 1 0 0 0 1".split()
LINEAR = {
    "CenteredAffineTransform_double_3_3": ([*CENTERED, 0, 0, 0, 1, 2, 3], [0, 0, 0]),
    "ScalableAffineTransform_double_3_3": ([*CENTERED, 1, 2, 3], [0, 0, 0]),
    "CenteredEuler3DTransform_double_3_3": ([0.1, 0.2, 0.3, 4, 5, 6, 1, 2, 3], [0, 0, 0]),
    "AffineTransform_float_3_3": ([*CENTERED, 1, 2, 3], [4, 5, 6]),  # ANTs' 0GenericAffine has a center
    "ScaleLogarithmicTransform_double_3_3": ([0.9, 1.2, 1.1], [1, 2, 3]),
    "VersorTransform_double_3_3": ([0.1, 0.2, 0.3], [1, 2, 3]),
    "QuaternionRigidTransform_double_3_3": ([0.1, 0.2, 0.3, 0.9, 1, 2, 3], [0, 0, 0]),
    "IdentityTransform_double_3_3": ([], []),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_kinds_go_where_itk_takes_points(tmp_path, kind):
    file = tmp_path / "t.txt"
    file.write_text(HEADER + text(0, kind, *LINEAR[kind]), encoding="utf-8")
    (by_itk,) = itk.transformread(str(file))
    points = rng(4).uniform(-50, 50, (3, 20))
    expected = np.array([list(by_itk.TransformPoint(point.tolist())) for point in points.T]).T
    assert (np.abs(expected - points).max() > 0.1) != kind.startswith("Identity")
    found = read_transform(file).transform_points(torch.as_tensor(flip(3) @ points))
    assert max_abs(flip(3) @ found.numpy(), expected) < 1e-9


def test_an_affine_transform_by_the_name_of_its_base_class(tmp_path):
    """Old files of ANTs have it; itk does not know it, SimpleITK does."""
    kind, (values, fixed) = "MatrixOffsetTransformBase_double_3_3", LINEAR["AffineTransform_float_3_3"]
    for name in (kind, "AffineTransform_double_3_3"):
        (tmp_path / f"{name}.txt").write_text(HEADER + text(0, name, values, fixed))
    point = torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64)
    moved = [read_transform(file).transform_points(point) for file in sorted(tmp_path.iterdir())]
    assert torch.equal(*moved) and (moved[0] - point).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("BSplineTransform_double_3_3_2", "BSplineTransform of order 2 is not supported"),
        ("ConstantVelocityFieldTransform_double_3_3", "ConstantVelocityFieldTransform is not supported"),
    ],
)
def test_what_is_like_a_supported_kind_but_is_not_is_refused(tmp_path, kind, named):
    """Both would pass for a lattice of displacements."""
    fixed = [4, 4, 4, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    (tmp_path / "t.tfm").write_text(HEADER + text(0, kind, [0.5] * 192, fixed), encoding="utf-8")
    with pytest.raises(ValueError, match=f"t.tfm: {named}: linear transforms, cubic"):
        read_transform(tmp_path / "t.tfm")


@pytest.mark.parametrize("dims", DIMS)
def test_a_displacement_file_is_what_itk_itself_writes(tmp_path, dims):
    """Values bit by bit, geometry, and the header's meaning of the fifth axis, with itk's writer for the oracle."""
    values, affine = lattice(dims, 9)
    file = write_displacement(values, affine, tmp_path / "displacement.nii.gz")
    vectors = np.moveaxis(np.tensordot(flip(dims), values.numpy(), axes=1), 0, -1).astype(np.float32)
    vectors = np.ascontiguousarray(vectors.transpose(*range(dims - 1, -1, -1), dims))
    kind = itk.Image[itk.Vector[itk.F, dims], dims]
    image = itk.image_from_array(vectors, ttype=kind)
    columns = flip(dims) @ affine.numpy()[:-1]
    spacing = np.linalg.norm(columns[:, :-1], axis=0)
    image.SetOrigin(columns[:, -1].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(columns[:, :-1] / spacing)))
    itk.imwrite(image, str(tmp_path / "by_itk.nii.gz"))
    read = {}
    for name in ("displacement", "by_itk"):
        reader = itk.ImageFileReader[kind].New(FileName=str(tmp_path / f"{name}.nii.gz"))
        reader.Update()
        read[name] = reader.GetOutput()
    ours, theirs = read.values()
    assert np.array_equal(itk.array_from_image(ours), vectors)
    for part in ("GetOrigin", "GetSpacing"):
        assert list(getattr(ours, part)()) == list(getattr(theirs, part)())
    assert np.array_equal(itk.array_from_matrix(ours.GetDirection()), itk.array_from_matrix(theirs.GetDirection()))
    headers = [nib.load(each).header for each in (file, tmp_path / "by_itk.nii.gz")]
    for field in ("dim", "pixdim", "datatype", "intent_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(*(header[field] for header in headers)), field
    assert headers[0].get_intent()[0] == "vector"


def test_simpleitk_resamples_whole_numbers_as_we_do_if_it_reads_them_as_real_ones(tmp_path):
    """As docs/slicer-ants-simpleitk.md says: it truncates, we round."""
    values = rng(10).integers(0, 1000, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "m.nii.gz")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3], matrix[0, 1] = 0.3713, 0.1007
    write_transform(WorldTransform([WorldAffine(matrix)], 3), tmp_path / "t.h5")
    moving, transform, ours = (str(tmp_path / name) for name in ("m.nii.gz", "t.h5", "ours.nii.gz"))
    apply_transform(transform, moving, ours, reference=moving)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(ours)).astype(float)
    found = {}
    for kind in (sitk.sitkInt16, sitk.sitkFloat32):
        image = sitk.ReadImage(moving, kind)
        darkest = float(sitk.GetArrayViewFromImage(image).min())
        warped = sitk.Resample(image, image, sitk.ReadTransform(transform), sitk.sitkLinear, darkest)
        found[kind] = sitk.GetArrayFromImage(warped).astype(float)
    assert (found[sitk.sitkInt16] != expected).mean() > 0.2
    assert max_abs(found[sitk.sitkFloat32], expected) < 0.501


# --- what is imported ------------------------------------------------------------------------------------------------


def run_without_itk(code):
    """Runs Python in which ``import itk`` fails."""
    command = [sys.executable, "-c", f"import sys; sys.modules['itk'] = None\n{code}"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def test_files_are_written_and_read_without_itk(tmp_path):
    file = str(tmp_path / "t.h5")
    done = run_without_itk(
        "import torch\nfrom istn_monai import WorldTransform, read_transform, write_transform\n"
        "from istn_monai.geometry.world_transform import WorldAffine, WorldBSpline\n"
        "parts = [WorldAffine(torch.eye(4)), WorldBSpline(torch.ones(3, 4, 5, 6), torch.eye(4))]\n"
        f"back = read_transform(write_transform(WorldTransform(parts, 3), {file!r}))\n"
        "print([type(part).__name__ for part in back.components])"
    )
    assert done.stdout.strip() == "['WorldAffine', 'WorldBSpline']", done.stderr


def test_without_itk_a_file_that_needs_it_says_so(tmp_path):
    """It must not be read in part."""
    transforms, _ = two_transforms()
    itk.transformwrite(transforms, str(tmp_path / "two.txt"))
    done = run_without_itk(f"from istn_monai import read_transform\nread_transform({str(tmp_path / 'two.txt')!r})")
    last = done.stderr.strip().splitlines()[-1]
    assert "two.txt is beyond SimpleITK (" in last and last.endswith("itk reads more: pip install itk")
