"""Independent references for the tests: ITK, scipy and plain numpy, on grids that are neither cubic nor isotropic.

ITK points are (x, y, z) = tensor axes (0, 1, 2). ITK images index the same way, so arrays are transposed on the way in
and out. RAS becomes LPS by flipping the first two world axes, in 2-D too.
"""

import itk
import numpy as np
import torch
from monai.data import MetaTensor

SIZE = {2: (12, 9), 3: (9, 7, 6)}
SPACING = {2: (1.3, 0.7), 3: (1.5, 0.7, 2.1)}
DIMS = (2, 3)


def rng(seed):
    return np.random.default_rng(seed)


def normal(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return torch.as_tensor(rng(seed).normal(scale=scale, size=shape), dtype=dtype)


def smooth_image(size, seed=0):
    """A smooth random image in [0, 1], different along each axis."""
    phases = rng(seed).uniform(0, 2 * np.pi, len(size))
    axes = np.meshgrid(*[np.arange(n) for n in size], indexing="ij")
    value = sum(np.sin((0.5 + 0.17 * k) * x + p) for k, (x, p) in enumerate(zip(axes, phases, strict=True)))
    value = value + 0.5 * np.cos(sum(0.3 * (k + 1) * x for k, x in enumerate(axes)))
    return (value - value.min()) / (value.max() - value.min())


def grid_points(size):
    """``(D, *size)`` voxel coordinates."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in size], indexing="ij"))


def max_abs(a, b):
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float) for x in (a, b))
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    assert a.size
    return np.abs(a - b).max()


def column(values, dims):
    """``(D,)`` to ``(D, 1, ..)``, to multiply a field with."""
    return np.asarray(values, dtype=float).reshape(-1, *[1] * dims)


# ITK transforms


def parameters(values):
    result = itk.OptimizerParameters[itk.D](len(values))
    for k, value in enumerate(values):
        result[k] = float(value)
    return result


def itk_bspline(bspline, theta):
    """The ``itk.BSplineTransform`` of one ``theta`` ``(P,)``, in mm along the grid's axes from its first voxel."""
    dims = bspline.spatial_dims
    transform = itk.BSplineTransform[itk.D, dims, 3].New()
    transform.SetTransformDomainOrigin([float(v) for v in bspline.domain_origin])
    transform.SetTransformDomainMeshSize([int(n) for n in bspline.cells])
    extent = [float(n * c) for n, c in zip(bspline.cells, bspline.control_spacing, strict=True)]
    transform.SetTransformDomainPhysicalDimensions(extent)
    lattice = np.asarray(theta, dtype=float).reshape(dims, *[n + 3 for n in bspline.cells])
    if bspline.max_displacement is not None:
        lattice = bspline.max_displacement * np.tanh(lattice)
    lattice = lattice * column(bspline.control_spacing, dims)
    coefficients = np.concatenate([component.ravel(order="F") for component in lattice])  # first axis fastest
    assert transform.GetNumberOfParameters() == len(coefficients)
    transform.SetParametersByValue(parameters(coefficients))
    return transform


def itk_affine(matrix):
    """``itk.AffineTransform`` of a homogeneous matrix, as it is."""
    matrix = np.asarray(matrix, dtype=float)
    dims = len(matrix) - 1
    transform = itk.AffineTransform[itk.D, dims].New()
    transform.SetParametersByValue(parameters([*matrix[:dims, :dims].ravel(), *matrix[:dims, dims]]))
    return transform


def itk_displacement(transform, points):
    """Displacement ``(D, *T)`` of an ITK transform at points ``(D, *T)``."""
    flat = points.reshape(len(points), -1).T
    moved = np.array([list(transform.TransformPoint(point.tolist())) for point in flat])
    return (moved - flat).T.reshape(points.shape)


def itk_ddf(transform, size, spacing):
    """Displacement in mm at each voxel of a grid whose first voxel is at 0.

    Points are drawn to the middle by 1e-9 of their distance: ITK's B-spline gives 0 outside its domain, where rounding
    puts the grid's first and last voxels if the extent is a whole number of cells.
    """
    middle = column((np.array(size) - 1) / 2, len(size))
    points = (middle + (grid_points(size) - middle) * (1 - 1e-9)) * column(spacing, len(size))
    return itk_displacement(transform, points)


# world space


def lps(dims):
    return np.diag([-1.0, -1.0, *[1.0] * (dims - 1)])


def to_lps(matrix):
    """A map between RAS points as one between LPS points."""
    flip = lps(len(matrix) - 1)
    return flip @ np.asarray(matrix, dtype=float) @ flip


def rotation(dims, seed, angle=0.4):
    """A rotation about no particular axis."""
    skew = np.zeros((dims, dims))
    skew[np.triu_indices(dims, 1)] = rng(seed).uniform(0.5, 1.0, dims * (dims - 1) // 2) * angle
    vals, vecs = np.linalg.eig(skew - skew.T)
    return (vecs @ np.diag(np.exp(vals)) @ np.linalg.inv(vecs)).real


def oblique_affine(size, spacing, seed, center=None, signs=None, order=None, angle=0.4):
    """An oblique anisotropic RAS affine whose image has its middle at ``center``."""
    dims = len(size)
    directions = rotation(dims, seed, angle) @ np.eye(dims)[:, list(order or range(dims))]
    affine = np.eye(dims + 1)
    affine[:dims, :dims] = directions * np.array(signs or [1.0] * dims) * np.array(spacing)
    middle = (np.array(size) - 1) / 2
    affine[:dims, dims] = np.array(center if center is not None else [0.0] * dims) - affine[:dims, :dims] @ middle
    return affine


def apply(matrix, points):
    """Homogeneous matrix on points ``(D, *T)``."""
    matrix = np.asarray(matrix, dtype=float)
    dims = len(matrix) - 1
    return np.tensordot(matrix[:dims, :dims], points, axes=1) + column(matrix[:dims, dims], points.ndim - 1)


def inside(points, size, margin=1e-3):
    """Which points ``(D, *T)`` in voxels lie inside an image of ``size``."""
    upper = column(np.array(size) - 1, points.ndim - 1)
    return ((points >= margin) & (points <= upper - margin)).all(0)


def meta(array, affine):
    """A channel-first MetaTensor of an array ``(*S)``."""
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(array))[None], affine=torch.as_tensor(affine))


def itk_image(array, affine):
    """A float ITK image with the LPS geometry of an RAS affine."""
    dims = array.ndim
    image = itk.image_from_array(np.ascontiguousarray(array.T.astype(np.float32)))
    geometry = lps(dims) @ np.asarray(affine, dtype=float)
    spacing = np.linalg.norm(geometry[:dims, :dims], axis=0)
    image.SetSpacing([float(v) for v in spacing])
    image.SetOrigin([float(v) for v in geometry[:dims, dims]])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(geometry[:dims, :dims] / spacing)))
    return image


def itk_resample(moving, moving_affine, fixed_size, fixed_affine, ras_matrix):
    """ITK's linear resampling onto the fixed grid through an RAS matrix, fixed to moving world point."""
    dims = moving.ndim
    kind = itk.Image[itk.F, dims]
    resampler = itk.ResampleImageFilter[kind, kind].New()
    resampler.SetInput(itk_image(moving, moving_affine))
    resampler.SetTransform(itk_affine(to_lps(ras_matrix)))
    resampler.SetReferenceImage(itk_image(np.zeros(fixed_size), fixed_affine))
    resampler.UseReferenceImageOn()
    resampler.SetInterpolator(itk.LinearInterpolateImageFunction[kind, itk.D].New())
    resampler.Update()
    return itk.array_from_image(resampler.GetOutput()).T
