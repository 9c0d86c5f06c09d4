"""Whether a transform file is whole, before ITK reads it.

ITK takes what a truncated file lacks for zeros, for the identity or for what is in its memory, without a word, and HDF5
says fifty lines of its own on the terminal.

Convention:
    A linear kind needs as many numbers as it has; a lattice as many as its size says. More are left to ITK: its
    versions differ (an ``Euler3DTransform`` has a fourth fixed parameter by now).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from istn_monai.io.whole import HDF5_SIGNATURE, check_hdf5

TEXT, MATLAB = (".tfm", ".txt"), ".mat"
#: kinds of no lattice: how many parameters they have in 2-D and in 3-D, as far as there is such a kind
PARAMETERS: dict[str, dict[int, int]] = {
    "AffineTransform": {2: 6, 3: 12}, "MatrixOffsetTransformBase": {2: 6, 3: 12},
    "ScalableAffineTransform": {2: 6, 3: 12},
    "CenteredAffineTransform": {2: 8, 3: 15}, "FixedCenterOfRotationAffineTransform": {2: 8, 3: 15},
    "TranslationTransform": {2: 2, 3: 3}, "ScaleTransform": {2: 2, 3: 3}, "ScaleLogarithmicTransform": {2: 2, 3: 3},
    "Euler2DTransform": {2: 3}, "Rigid2DTransform": {2: 3}, "Similarity2DTransform": {2: 4},
    "CenteredRigid2DTransform": {2: 5}, "CenteredSimilarity2DTransform": {2: 6},
    "VersorTransform": {3: 3}, "Euler3DTransform": {3: 6}, "VersorRigid3DTransform": {3: 6},
    "QuaternionRigidTransform": {3: 7}, "Similarity3DTransform": {3: 7}, "CenteredEuler3DTransform": {3: 9},
    "ScaleVersor3DTransform": {3: 9}, "Rigid3DTransform": {3: 12}, "ComposeScaleSkewVersor3DTransform": {3: 12},
    "ScaleSkewVersor3DTransform": {3: 15},
}  # fmt: skip
LATTICES = ("BSplineTransform", "DisplacementFieldTransform")
#: that ITK takes without fixed parameters: their center is among the parameters, or they have none
NO_FIXED = ("TranslationTransform", "CenteredRigid2DTransform", "CenteredSimilarity2DTransform")
NO_NUMBERS = ("CompositeTransform", "IdentityTransform")
KIND = re.compile(r"([A-Za-z]\w*Transform(?:Base)?)_(?:double|float)_(\d+)_\d+")
NUMBER = re.compile(rb"\S+")
LINE = "FixedParameters", "Parameters"
#: MATLAB 4: type, rows, columns, whether complex, length of the name
MATLAB_HEADER = 20
MATLAB_BYTES = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}


def check_whole_transform(file: Path) -> None:
    """ValueError if a transform file was truncated; of other formats than these here nothing is asked.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "t.tfm"
        >>> text = "Transform: TranslationTransform_double_3_3\\nParameters: 1 2\\nFixedParameters: 0 0 0\\n"
        >>> _ = file.write_text(text)
        >>> check_whole_transform(file)
        Traceback (most recent call last):
        ValueError: it is truncated, its TranslationTransform has 2 of 3 Parameters: copy or write it again
    """
    check = {MATLAB: check_matlab, **dict.fromkeys(TEXT, check_text)}.get(file.suffix.lower(), check_hdf5_file)
    try:
        check(file)
    except EOFError as error:
        raise ValueError(f"it is truncated, {error}: copy or write it again") from error


def check_hdf5_file(file: Path) -> None:
    """EOFError for an HDF5 file that is not as long as it says; of a file of another format nothing is asked."""
    with file.open("rb") as content:
        begin = content.read(len(HDF5_SIGNATURE))
    if HDF5_SIGNATURE.startswith(begin):
        check_hdf5(file)


def check_text(file: Path) -> None:
    """EOFError unless each transform of ITK's text format has its two lines, of all numbers, and the last line ends."""
    kind, found = "", dict[str, Sequence[float]]()
    last = b"\n"
    with file.open("rb") as content:
        for line in content:
            last = line
            name, _, value = (part.strip() for part in line.partition(b":"))
            if name == b"Transform":
                check_numbers_of(kind, found)
                kind, found = value.decode("latin-1"), {}
            elif name.decode("latin-1") in LINE:
                found[name.decode()] = counted(value)
    if not last.endswith((b"\n", b"\r")):
        raise EOFError("its last line does not end")
    if last.startswith(b"#Transform") or kind.startswith(NO_NUMBERS[0]):
        raise EOFError("a transform is missing at its end")
    check_numbers_of(kind, found)


def counted(value: bytes) -> Sequence[float]:
    """The numbers of a line; of a long one, a lattice's, only how many there are, as a range."""
    number = sum(1 for _ in NUMBER.finditer(value))
    if number > 100:
        return range(number)
    try:
        return [float(word) for word in value.split()]
    except ValueError as error:
        raise EOFError(f"it has a word that is no number ({error})") from error


def check_numbers_of(kind: str, found: Mapping[str, Sequence[float]]) -> None:
    """EOFError unless a transform has as many numbers as its kind has; of no kind nothing is asked."""
    match = KIND.match(kind)
    if not kind or kind.startswith(NO_NUMBERS):
        return
    name, dims = (match[1], int(match[2])) if match else (kind, 0)
    expected = expected_numbers(name, dims, found.get(LINE[0], ()))
    for line, number in zip(LINE, expected, strict=True):
        if line not in found:
            raise EOFError(f"its {name} has no {line}")
        if len(found[line]) < number:
            raise EOFError(f"its {name} has {len(found[line])} of {number} {line}")


def expected_numbers(name: str, dims: int, fixed: Sequence[float]) -> tuple[int, int]:
    """How many fixed parameters, and parameters, a transform has at least."""
    if name.startswith(LATTICES):
        size = fixed[:dims] if len(fixed) >= dims and all(math.isfinite(n) for n in fixed[:dims]) else (0,)
        return dims * (3 + dims), dims * int(math.prod(size))
    return dims if name in PARAMETERS and name not in NO_FIXED else 0, PARAMETERS.get(name, {}).get(dims, 0)


def check_matlab(file: Path) -> None:
    """EOFError unless the matrices of a MATLAB 4 file are whole: of each transform one, and then one named "fixed"."""
    kind, found = "", dict[str, Sequence[float]]()
    size = file.stat().st_size
    with file.open("rb") as content:
        for name, values in matrices(content, size):
            if name == "fixed":
                found[LINE[0]] = values
            else:
                check_numbers_of(kind, found)
                kind, found = name, {LINE[1]: values}
    check_numbers_of(kind, found)


def matrices(content: BinaryIO, size: int) -> Iterator[tuple[str, Sequence[float]]]:
    """Names and values of the matrices of a MATLAB 4 file; of a large one, a lattice's, only how many there are."""
    while content.tell() < size:
        head = content.read(MATLAB_HEADER)
        if len(head) < MATLAB_HEADER:
            raise EOFError(f"{len(head)} bytes are left where {MATLAB_HEADER} say what follows")
        order = "<" if int.from_bytes(head[:4], "little") < 10000 else ">"
        kind, rows, columns, _, length = struct.unpack(f"{order}5i", head)
        each = MATLAB_BYTES.get(kind // 10 % 10)
        if each is None or min(rows, columns, length) < 0:
            return  # no matrix of MATLAB 4: ITK says so
        name = content.read(length).rstrip(b"\0").decode("latin-1")
        number = rows * columns
        if size - content.tell() < number * each:
            raise EOFError(f"its {name} has {size - content.tell()} of {number * each} bytes")
        yield name, values_of(content, order, number, each)


def values_of(content: BinaryIO, order: str, number: int, each: int) -> Sequence[float]:
    """So many numbers of a file; of many only how many there are, as a range."""
    if number > 100 or each not in (4, 8):
        content.seek(number * each, 1)
        return range(number)
    return struct.unpack(f"{order}{number}{'d' if each == 8 else 'f'}", content.read(number * each))
