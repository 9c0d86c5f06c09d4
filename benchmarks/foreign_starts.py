"""Files of other tools, read here: each tool's own resampled image against ours, made with the tool's file.

    python benchmarks/foreign_starts.py --data DIR [--pairs 3] [--peer_python /path/to/other/venv/bin/python]
        [--output FILE]

DIR holds ``hippocampus/``; the pairs are the first ones of its test split, the moving image's affine edited so that
the grids' middles meet. The peers run in PEER_PYTHON, which needs neither torch nor this project: ANTsPy registers
affinely (``0GenericAffine.mat``) and by SyN (a composite ``.h5``, and warp and affine as two files), itk-elastix by an
affine and a B-spline (parameter files), picsl_greedy affinely (a plain matrix). Each writes the moving image on the
fixed grid, linearly interpolated; ``istn-monai apply`` does so with the file alone. Of ANTs' two files it is given what
``istn-monai compose`` made of them, in the reverse of the order that ANTs takes. The last row is the other way round:
ANTsPy resamples by a composite that ``compose`` made of elastix' and ANTs' files and an inverse.

``error`` is the largest difference over the range of the moving image, wherever the place that is looked up lies
``INSIDE`` voxels or more inside of the moving image: beyond its border tools fill what they do not know, and within
half a voxel of it some extrapolate. Where a place lies says the transform as it was read: read wrongly, the images
differ inside, too. ``unmoved`` is the error of the identity, which a reader that did nothing would have, ``voxels`` the
fraction of the fixed image that is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

INSIDE = 1.0  # voxels
TOLERANCE = 1e-3  # of the image's range
PACKAGES = ("antspyx", "itk-elastix", "picsl_greedy")
#: by name: the package, and the transform's name as istn-monai takes it, by folder
STARTS = {
    "ants affine": ("antspyx", "{0}/ants_0GenericAffine.mat"),
    "ants composite": ("antspyx", "{0}/syn_Composite.h5"),
    "ants files": ("antspyx", "{0}/composed.h5"),
    "elastix affine": ("itk-elastix", "{0}/TransformParameters.0.txt"),
    "elastix affine + B-spline": ("itk-elastix", "{0}/TransformParameters.1.txt"),
    "greedy affine": ("picsl_greedy", "greedy:{0}/greedy.mat"),
    "ours read by ants": ("antspyx", "{0}/mixed.h5"),
}
#: the other way round: what ``compose`` makes of files of two tools and an inverse, for ANTs to read
MIXED = ("{0}/TransformParameters.1.txt", "[{0}/TransformParameters.0.txt,1]", "{0}/ants_0GenericAffine.mat")


def image_of(name: str) -> str:
    """The file of the image that a tool has resampled."""
    return f"{name.replace(' ', '_')}.nii.gz"


# --- in the peers' interpreter ---------------------------------------------------------------------------------------


def ants_starts(folder: str) -> None:
    """ANTsPy's affine, its SyN as a composite, and as two files."""
    import ants

    moving, fixed = (ants.image_read(f"{folder}/{side}.nii.gz") for side in ("moving", "fixed"))
    darkest = float(moving.min())

    def warped(files: list[str], name: str) -> None:
        image = ants.apply_transforms(fixed, moving, files, "linear", defaultvalue=darkest)
        ants.image_write(image, f"{folder}/{image_of(name)}")

    affine = ants.registration(fixed, moving, "Affine", outprefix=f"{folder}/ants_")
    warped(affine["fwdtransforms"], "ants affine")
    whole = ants.registration(fixed, moving, "SyNOnly", outprefix=f"{folder}/syn_", write_composite_transform=True,
                              initial_transform=affine["fwdtransforms"][0])  # fmt: skip
    warped([whole["fwdtransforms"]] if isinstance(whole["fwdtransforms"], str) else whole["fwdtransforms"],
           "ants composite")  # fmt: skip
    both = ants.registration(fixed, moving, "SyN", outprefix=f"{folder}/two_")
    warped(both["fwdtransforms"], "ants files")
    Path(folder, "ants files.json").write_text(json.dumps(both["fwdtransforms"]), encoding="utf-8")


def ants_reads(folder: str) -> None:
    """The moving image by ANTsPy and a composite that we wrote."""
    import ants

    moving, fixed = (ants.image_read(f"{folder}/{side}.nii.gz") for side in ("moving", "fixed"))
    image = ants.apply_transforms(fixed, moving, [f"{folder}/mixed.h5"], "linear", defaultvalue=float(moving.min()))
    ants.image_write(image, f"{folder}/{image_of('ours read by ants')}")


def elastix_starts(folder: str) -> None:
    """itk-elastix's affine, and the B-spline after it."""
    import itk

    fixed, moving = (itk.imread(f"{folder}/{side}.nii.gz", itk.F) for side in ("fixed", "moving"))
    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        single = parameters.GetDefaultParameterMap(kind)
        single["AutomaticTransformInitialization"] = ["false"]
        parameters.AddParameterMap(single)
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, output_directory=folder)
    for count, name in ((1, "elastix affine"), (2, "elastix affine + B-spline")):
        part = itk.ParameterObject.New()
        for number in range(count):
            single = found.GetParameterMap(number)
            single["ResampleInterpolator"] = ["FinalLinearInterpolator"]
            single["ResultImagePixelType"] = ["float"]
            part.AddParameterMap(single)
        itk.imwrite(itk.transformix_filter(moving, part), f"{folder}/{image_of(name)}")


def greedy_starts(folder: str) -> None:
    """picsl_greedy's affine."""
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    images = f"-i {folder}/fixed.nii.gz {folder}/moving.nii.gz"
    greedy.execute(f"{images} -m NCC 2x2x2 -a -dof 12 -n 100x50x10 -ia-identity -o {folder}/greedy.mat")
    moved = f"-rm {folder}/moving.nii.gz {folder}/{image_of('greedy affine')} -r {folder}/greedy.mat"
    greedy.execute(f"-rf {folder}/fixed.nii.gz -ri LINEAR {moved}")


def peer(package: str, folder: str) -> None:
    """All starts of one package, in its interpreter."""
    {"reading": ants_reads, "antspyx": ants_starts, "itk-elastix": elastix_starts, "picsl_greedy": greedy_starts}[
        package
    ](folder)


def installed() -> None:
    """Prints the versions of the peers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    print(json.dumps(found))


# --- in ours ---------------------------------------------------------------------------------------------------------


def prepare(pair: dict[str, str], folder: Path) -> None:
    """The pair in float32, the middles of the grids in one place."""
    import nibabel as nib
    import numpy as np

    images = {side: nib.load(pair[f"{side}_image"]) for side in ("moving", "fixed")}
    middles = {side: image.affine @ [*((np.array(image.shape) - 1) / 2), 1.0] for side, image in images.items()}
    for side, image in images.items():
        affine = image.affine.copy()
        affine[:3, 3] += (middles["fixed"] - middles[side])[:3]
        made = nib.Nifti1Image(image.get_fdata().astype(np.float32), affine)
        made.header.set_xyzt_units("mm")
        nib.save(made, folder / f"{side}.nii.gz")


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """The difference of the tool's image and ours."""
    import nibabel as nib
    import numpy as np

    from istn_monai.apply import apply_transform
    from istn_monai.geometry.grids import Grid
    from istn_monai.io.any_transform import read_any_transform
    from istn_monai.io.images import load_image

    images = {side: str(folder / f"{side}.nii.gz") for side in ("moving", "fixed")}
    transform = STARTS[name][1].format(folder)
    ours = apply_transform(transform, images["moving"], str(folder / "ours.nii.gz"), images["fixed"],
                           interpolation="linear", overwrite=True)  # fmt: skip
    moving, fixed = (Grid.of(load_image(images[side], side, 3)) for side in ("moving", "fixed"))
    places = moving.voxels(read_any_transform(transform, 3, moving, fixed).on_grid(fixed)).numpy()
    size = np.array(moving.spatial_size)[:, None, None, None]
    inside = ((places >= INSIDE) & (places <= size - 1 - INSIDE)).all(axis=0)
    theirs, found = (nib.load(file).get_fdata().squeeze() for file in (folder / image_of(name), ours))
    values = nib.load(images["moving"]).get_fdata()
    still = apply_transform(identity(folder), images["moving"], str(folder / "still.nii.gz"), images["fixed"],
                            interpolation="linear", overwrite=True)  # fmt: skip
    unmoved = np.abs(nib.load(still).get_fdata() - theirs)[inside].max() / np.ptp(values)
    error = np.abs(found - theirs)[inside].max() / np.ptp(values)
    return {"error": float(error), "tolerance": TOLERANCE, "unmoved": float(unmoved), "voxels": float(inside.mean())}


def identity(folder: Path) -> str:
    """A file of the identity."""
    import torch

    from istn_monai.geometry.components import WorldAffine
    from istn_monai.geometry.world_transform import WorldTransform
    from istn_monai.io.itk_transforms import write_transform

    return str(write_transform(WorldTransform([WorldAffine(torch.eye(4))], 3), folder / "identity.tfm"))


def pair_rows(
    number: int, pair: dict[str, str], peers: dict[str, str | None], peer_python: str
) -> list[dict[str, Any]]:
    """All starts of one pair."""
    from istn_monai.compose import compose_files

    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(pair, folder)
        for package in (name for name, version in peers.items() if version):
            subprocess.run([peer_python, __file__, "peer", package, work], check=True, stdout=subprocess.DEVNULL)
        if peers["antspyx"]:
            files = json.loads((folder / "ants files.json").read_text(encoding="utf-8"))
            compose_files(files[::-1], str(folder / "composed.h5"))
        if peers["antspyx"] and peers["itk-elastix"]:
            compose_files([name.format(folder) for name in MIXED], str(folder / "mixed.h5"))
            subprocess.run([peer_python, __file__, "peer", "reading", work], check=True, stdout=subprocess.DEVNULL)
        for name, (package, _) in STARTS.items():
            if peers[package] and (folder / image_of(name)).exists():
                rows.append({"what": f"pair {number}", "candidate": name, **row_of(name, folder)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main(data: str, pairs: int = 3, peer_python: str = sys.executable, output: str | None = None) -> None:
    """Runs the comparison; see the module."""
    from common import RESULTS, must_agree, provenance, write

    list_file = Path(data) / "hippocampus" / "pairs_100.json"
    chosen = json.loads(list_file.read_text(encoding="utf-8"))["testing"][:pairs]
    told = subprocess.run(
        [peer_python, __file__, "installed"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    peers = json.loads(told)
    rows = []
    for number, pair in enumerate(chosen):
        files = {key: str(list_file.parent / value) for key, value in pair.items() if key.endswith("_image")}
        rows += pair_rows(number, files, peers, peer_python)
    content = {"provenance": provenance("cpu", peers=peers, pairs=pairs, inside_voxels=INSIDE), "rows": rows}
    write(content, output or RESULTS / "foreign_starts.json")
    must_agree(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["installed"]:
        installed()
    elif sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:4])
    else:
        import fire

        fire.Fire(main)
