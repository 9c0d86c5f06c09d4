"""Transform files of tools that do not write ITK's: recognized by what stands in them, and what to do with each.

None is read here. Each has a frame and a direction of its own, which its file does not always say, and which the tools
named here know. :mod:`istn_monai.io.elastix` reads elastix's files, and :mod:`istn_monai.io.matrix_files` plain
matrices whose convention is said.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from istn_monai.io.nifti_headers import units_of

HEAD = 2**12  # bytes that tell a format
MATRIX = (
    "a plain matrix of numbers, which does not say its frame: write greedy:FILE for one of RAS mm that pulls back "
    "(greedy, c3d), or fsl:FILE, with both images, for FSL's flirt; or convert it by c3d_affine_tool ... -oitk OUT.txt"
)
#: pattern of a file's first bytes, and what it is
BY_CONTENT = (
    (rb"\A(#[^\n]*\n)*\s*type\s*=[^\n]*\n\s*nxforms", "a FreeSurfer .lta: convert it by lta_convert --outitk"),
    (
        rb"\AMNI Transform File",
        "a MINC .xfm, which ITK's readers take for LPS: convert it by lta_convert --inmni FILE --outitk OUT.txt",
    ),
    (
        rb"\A(#[^\n]*3dAllineate|#[^\n]*3dvolreg|#[^\n]*aff12)",
        "an AFNI .1D: convert it by nitransforms",
    ),
    (rb"\AMATLAB 5.0 MAT-file", "a MATLAB 5 file, such as SPM's _sn.mat: write SPM's deformation as a field of ITK"),
)
BY_SUFFIX = {
    ".lta": BY_CONTENT[0][1],
    ".xfm": BY_CONTENT[1][1],
    ".1D": BY_CONTENT[2][1],
    ".m3z": "a FreeSurfer morph: convert it by mri_warp_convert --outitk OUT.nii.gz",
    ".x5": "an X5 file: convert it to ITK's format by nitransforms",
}
NUMBERS = re.compile(r"(#[^\n]*\n|[-+\d.eE,\s])+")
#: names by which other tools mark NIfTI vectors that are positions or coefficients, not displacements
NO_DISPLACEMENT = {
    "NREG_TRANS": "NiftyReg's transform: convert it by reg_transform -disp, and its vectors from RAS to LPS",
    "Mapping": "SPM's deformation, whose vectors are positions: write displacements in LPS mm",
}
FSL_INTENTS = range(2001, 2020)
VECTOR_AXES = 5  # of a NIfTI file of vectors


def foreign_format(file: Path) -> str | None:
    """What a transform file is, and how to convert it, if it is of no format that ITK reads; None for all others.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "flirt.mat"
        >>> _ = file.write_text("1 0 0 2\\n0 1 0 3\\n0 0 1 4\\n0 0 0 1\\n")
        >>> foreign_format(file)[:25]
        'a plain matrix of numbers'
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    for pattern, what in BY_CONTENT:
        if re.match(pattern, head):
            return what
    text = head.decode("latin-1")
    if head and NUMBERS.fullmatch(text) and len(re.sub(r"#[^\n]*", "", text).split()) in (9, 12, 16):
        return BY_SUFFIX[".1D"] if file.suffix == ".1D" else MATRIX
    return BY_SUFFIX.get(file.suffix)


def check_vectors(image: Any) -> None:
    """ValueError if the vectors of a NIfTI file, by nibabel, are not displacements in mm by its header."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        raise ValueError("the file is of Analyze's format, which has no vectors: write a displacement field as NIfTI")
    name, intent = header.get_intent()[2], int(header["intent_code"])
    if name in NO_DISPLACEMENT:
        raise ValueError(f"the file is {NO_DISPLACEMENT[name]}")
    if intent in FSL_INTENTS:
        raise ValueError(
            "the file is a warp of FSL: convert it to displacements in LPS mm by wb_command -convert-warpfield"
        )
    if units_of(header)[0] not in ("mm", "unknown"):
        raise ValueError(f"the file is in units of {units_of(header)[0]}: write it in mm")
    kind, scaling = header.get_data_dtype().newbyteorder("="), (image.dataobj.slope, image.dataobj.inter)
    if image.ndim == VECTOR_AXES and (kind not in (np.float32, np.float64) or scaling != (1.0, 0.0)):
        # ITK writes beyond its memory where it rescales vectors of whole numbers
        by = "" if scaling == (1.0, 0.0) else f" with scl_slope {scaling[0]:g} and scl_inter {scaling[1]:g}"
        raise ValueError(f"the file's voxels are {kind}{by}: write a displacement field as float32, unscaled")
