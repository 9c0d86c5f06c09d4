"""Which kinds of transforms a file of ITK's names, before ITK reads it.

ITK takes the dimensions of a composite's members on trust, calls some kinds linear that are not, and ends the process
over a displacement field without voxels: by then it is too late to say so.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

#: that are read: linear ones, and those of a lattice
KINDS = frozenset(
    f"{name}Transform"
    for name in (
        "Affine", "CenteredAffine", "FixedCenterOfRotationAffine", "ScalableAffine",
        "Translation", "Identity", "Scale", "ScaleLogarithmic",
        "Rigid2D", "CenteredRigid2D", "Euler2D", "Similarity2D", "CenteredSimilarity2D",
        "Rigid3D", "Euler3D", "CenteredEuler3D", "QuaternionRigid", "Versor", "VersorRigid3D",
        "Similarity3D", "ScaleVersor3D", "ScaleSkewVersor3D", "ComposeScaleSkewVersor3D",
        "BSpline", "DisplacementField", "Composite",
    )
) | {"MatrixOffsetTransformBase"}  # fmt: skip
NAME = re.compile(rb"[A-Za-z]\w*Transform(Base)?$")
LONGEST = 80  # characters of a name
#: what follows a name; it is looked for first, because a file of gigabytes is searched ten times as fast for it
DIMENSIONS = re.compile(rb"_(?:double|float)_(\d+)_(\d+)")
EMPTY = re.compile(rb"DisplacementFieldTransform\w*[ \t\r]*\nParameters:[ \t\r]*\n")


def check_kinds(file: Path) -> None:
    """ValueError if a file names a kind that is not read, kinds of several dimensions, or a field without voxels.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "t.tfm"
        >>> _ = file.write_text("Transform: AffineTransform_double_3_3\\nTransform: Euler2DTransform_double_2_2\\n")
        >>> check_kinds(file)
        Traceback (most recent call last):
        ValueError: it holds transforms of 3 and of 2 dimensions, AffineTransform and Euler2DTransform: write ...
    """
    if not file.stat().st_size:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [
            (NAME.search(content, max(0, m.start() - LONGEST), m.start()), m) for m in DIMENSIONS.finditer(content)
        ]
        named = [(name[0].decode(), int(match[1]), int(match[2])) for name, match in found if name]
        empty = EMPTY.search(content) is not None
    others = [name for name, _, _ in named if name not in KINDS]
    if others:
        raise unsupported(others[0])
    dims = {dim: name for name, *both in named for dim in both}
    if len(dims) > 1:
        raise ValueError(
            f"it holds transforms of {' and of '.join(map(str, dims))} dimensions, {' and '.join(dims.values())}: "
            "write those of each to a file of its own"
        )
    if empty:
        raise no_voxels("DisplacementFieldTransform")


def unsupported(name: str) -> ValueError:
    """For a kind of transform that is not read."""
    return ValueError(f"{name} is not supported: linear transforms, cubic B-splines and displacement fields are")


def no_voxels(name: str) -> ValueError:
    """For a lattice on which nothing is known."""
    return ValueError(f"it holds a {name} of no points: write it again, with the size of its lattice")
