"""The engines that ``engines.py`` compares, each on the images of a pair or on their representations.

    python benchmarks/engine_methods.py ENGINE FOLDER OUTPUT FIXED,FIXED... MOVING,MOVING...
    python benchmarks/engine_methods.py installed

The files are the channels of either side; each engine takes one channel and several with the same settings, and
begins at ``FOLDER/initial.tfm``. Writes its own transform files to OUTPUT and prints a line of JSON: ``seconds``, and
``transforms``, their names as ``istn-monai compose`` takes them. This module imports only what an engine needs.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

GREEDY_ROUNDS = "100x100x60"
#: at each of four resolutions; normalized correlation of 5000 places sees structures that fill little of an image
ELASTIX = {
    "AutomaticTransformInitialization": "false", "RandomSeed": "1", "MaximumNumberOfIterations": "100",
    "Registration": "MultiResolutionRegistration", "Metric": "AdvancedNormalizedCorrelation",
    "NumberOfSpatialSamples": "5000",
}  # fmt: skip
ELASTIX_GRID = "8"  # mm


def ants_syn(similarity: str, sampling: int) -> Callable[..., list[str]]:
    """ANTsPy's "SyNOnly", one metric for each channel; ``sampling`` is the radius of CC, or the bins of Mattes."""

    def register(start: str, output: Path, fixed: Sequence[str], moving: Sequence[str]) -> list[str]:
        import ants

        read = [[ants.image_read(file) for file in side] for side in (fixed, moving)]
        first, *others = zip(*read, strict=True)
        more = [[similarity, *channels, 1, sampling] for channels in others]
        found = ants.registration(
            *first, "SyNOnly", initial_transform=start, outprefix=f"{output}/ants_", syn_metric=similarity,
            syn_sampling=sampling, multivariate_extras=more or None, random_seed=1,
        )  # fmt: skip
        return found["fwdtransforms"][::-1]  # the affine holds the start already

    return register


def greedy(affine: bool) -> Callable[..., list[str]]:
    """picsl_greedy, local correlation in windows of 5 voxels: affine first, or deformable from the start."""

    def register(start: str, output: Path, fixed: Sequence[str], moving: Sequence[str]) -> list[str]:
        from picsl_greedy import Greedy3D

        tool = Greedy3D()
        channels = " ".join(f"-i {one} {other}" for one, other in zip(fixed, moving, strict=True))
        common = f"{channels} -m NCC 2x2x2 -threads 1"
        if affine:
            tool.execute(f"{common} -a -dof 12 -n 100x50x10 -ia {start} -o {output}/affine.mat")
        first = f"{output}/affine.mat" if affine else start
        tool.execute(f"{common} -n {GREEDY_ROUNDS} -it {first} -o {output}/warp.nii.gz")
        return [f"greedy:{first}" if affine else first, f"{output}/warp.nii.gz"]

    return register


def summed(files: Sequence[str]) -> Any:
    """The sum of channels, as an image of itk."""
    import itk

    first, *others = (itk.imread(file, itk.F) for file in files)
    values = itk.array_from_image(first)
    for other in others:
        values = values + itk.array_view_from_image(other)
    image = itk.image_from_array(values)
    image.CopyInformation(first)
    return image


def written_start(start: str, file: Path) -> str:
    """``initial.tfm`` as elastix's parameters, which take the same numbers in the same frame."""
    numbers = re.findall(r"^Parameters: (.*)$", Path(start).read_text(encoding="utf-8"), re.MULTILINE)[0]
    lines = [
        '(Transform "AffineTransform")', "(NumberOfParameters 12)", f"(TransformParameters {numbers})",
        '(InitialTransformParameterFileName "NoInitialTransform")', '(HowToCombineTransforms "Compose")',
        "(FixedImageDimension 3)", "(MovingImageDimension 3)", "(CenterOfRotationPoint 0.0 0.0 0.0)",
    ]  # fmt: skip
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def elastix(start: str, output: Path, fixed: Sequence[str], moving: Sequence[str]) -> list[str]:
    """itk-elastix, affine and B-splines of the sum of the channels, without a penalty."""
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        stage = parameters.GetDefaultParameterMap(kind)
        for name, value in ELASTIX.items():
            stage[name] = [value]
        if kind == "bspline":
            stage["FinalGridSpacingInPhysicalUnits"] = [ELASTIX_GRID]
        parameters.AddParameterMap(stage)
    itk.elastix_registration_method(
        summed(fixed), summed(moving), parameter_object=parameters, output_directory=str(output),
        initial_transform_parameter_file_name=written_start(start, output / "initial.txt"),
    )  # fmt: skip
    return [f"{output}/TransformParameters.1.txt"]  # which names the affine, and that the start


#: by engine: its package, and what registers
METHODS: dict[str, tuple[str, Callable[..., list[str]]]] = {
    "ANTs SyN, Mattes": ("antspyx", ants_syn("mattes", 32)),
    "ANTs SyN, CC": ("antspyx", ants_syn("CC", 2)),
    "elastix": ("itk-elastix", elastix),
    "greedy": ("picsl_greedy", greedy(affine=True)),
    "greedy, deformable": ("picsl_greedy", greedy(affine=False)),
}


def installed() -> dict[str, str | None]:
    """Versions of the engines' packages, None for one that is not there."""
    versions: dict[str, str | None] = {}
    for package in dict.fromkeys(package for package, _ in METHODS.values()):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def main(engine: str, folder: str, output: str, fixed: str, moving: str) -> None:
    """Registers a pair; see the module."""
    start = time.perf_counter()
    files = METHODS[engine][1](f"{folder}/initial.tfm", Path(output), fixed.split(","), moving.split(","))
    seconds = time.perf_counter() - start
    print("\n" + json.dumps({"seconds": seconds, "transforms": files}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["installed"]:
        print(json.dumps(installed()))
    else:
        main(*sys.argv[1:])
