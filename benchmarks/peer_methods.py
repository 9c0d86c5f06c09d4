"""The registration tools that ``peers.py`` compares, each behind the same four steps, one pair in a process of its own.

    python benchmarks/peer_methods.py METHOD CASE FOLDER OUTPUT THREADS [own_label]
    python benchmarks/peer_methods.py installed
    python benchmarks/peer_methods.py measure STDOUT STDERR COMMAND ...

FOLDER has ``moving.nii.gz``, ``fixed.nii.gz`` and ``moving_label.nii.gz``. Writes ``field.nii.gz`` to OUTPUT and prints
a line of JSON: ``seconds`` of the registration, affine and deformable, of loaded images, without writing. With
"own_label" it also writes ``own_label.nii.gz``, the label map as the tool itself warps it. "installed" prints the
versions of the methods' packages, None for one that is not there. "measure" runs a command, its output to files, and
prints what it needed; it is a small process itself, because Linux counts a parent's memory to a child's peak.

Convention:
    The field is the pull-back displacement at each voxel of the fixed image, fixed to moving point, in mm, LPS: a
    vector image as ITK and ANTs have them. It holds the affine part too.

This module imports only what a method needs: the interpreter of the peers need not have torch or this project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

FIELD, OWN_LABEL = "field.nii.gz", "own_label.nii.gz"
CHECKPOINT = "ISTN_BENCHMARK_CHECKPOINT"  # of "ours_checkpoint": the environment's name of its file
#: rounds of greedy's deformable registration, coarse to fine
GREEDY_ROUNDS = {"brain": "100x100x40", "hippocampus": "100x100x60"}
#: of ours: B-splines down to 6 mm and more bending energy, strides for voxels of 2 mm
SMOOTH = {
    "refine_levels": [[4, 60, 0], [2, 40, 0], [2, 60, 1], [1, 60, 2]],
    "refine_weights": {"image": 1.0, "bending": 2.0},
}
#: likewise, on a grid of 2 mm
SMOOTH_2MM = SMOOTH | {"spacing": 2, "refine_levels": [[4, 60, 0], [2, 40, 0], [1, 60, 1], [1, 60, 2]]}


class Method:
    """A tool that registers the pair in a folder; what :func:`main` calls, in this order.

    Args:
        case: "brain" or "hippocampus".
        folder: of the pair.
        output: folder for the results.
        threads: that the tool may use.
    """

    def __init__(self, case: str, folder: Path, output: Path, threads: int) -> None:
        self.case, self.output, self.threads = case, output, threads
        self.files = {role: str(folder / f"{role}.nii.gz") for role in ("moving", "fixed", "moving_label")}

    def load(self) -> None:
        """Imports the tool and reads the images."""
        raise NotImplementedError

    def register(self) -> None:
        """What is timed."""
        raise NotImplementedError

    def write_field(self, file: str) -> None:
        raise NotImplementedError

    def write_label(self, file: str) -> None:
        """The moving label as the tool itself warps it, to check the field."""
        raise NotImplementedError


class Ants(Method):
    """antspyx.

    Args:
        kind: ``type_of_transform``.
        arguments: those of :class:`Method`.
    """

    def __init__(self, kind: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kind = kind

    def load(self) -> None:
        import ants

        self.ants = ants
        self.moving, self.fixed = (ants.image_read(self.files[role]) for role in ("moving", "fixed"))

    def register(self) -> None:
        prefix = str(self.output / "ants_")
        self.result = self.ants.registration(self.fixed, self.moving, self.kind, outprefix=prefix)

    def write_field(self, file: str) -> None:
        prefix = str(self.output / "composed_")
        made = self.ants.apply_transforms(self.fixed, self.moving, self.result["fwdtransforms"], compose=prefix)
        Path(made).replace(file)

    def write_label(self, file: str) -> None:
        label = self.ants.image_read(self.files["moving_label"])
        transforms = self.result["fwdtransforms"]
        self.ants.image_write(self.ants.apply_transforms(self.fixed, label, transforms, "nearestNeighbor"), file)


class Greedy(Method):
    """picsl_greedy: affine from the headers, then deformable, both by a ``metric`` and its window, if it has one.

    Args:
        metric: of both stages.
        affine: whether there is an affine stage; it goes astray on some small images.
        arguments: those of :class:`Method`.
    """

    def __init__(self, metric: str, affine: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.metric, self.affine = metric, affine
        self.transforms = "warp affine" if affine else "warp"

    def load(self) -> None:
        import SimpleITK as sitk
        from picsl_greedy import Greedy3D

        self.sitk, self.greedy = sitk, Greedy3D()
        self.images = {role: sitk.ReadImage(self.files[role], sitk.sitkFloat32) for role in ("moving", "fixed")}

    def register(self) -> None:
        common = f"-i fixed moving -m {self.metric} -threads {self.threads}"
        deformable = f"{common} -n {GREEDY_ROUNDS[self.case]} -o warp"
        if self.affine:
            self.greedy.execute(f"{common} -a -dof 12 -n 100x50x10 -ia-identity -o affine", affine=None, **self.images)
            self.greedy.execute(f"{deformable} -it affine", warp=None)
        else:
            self.greedy.execute(deformable, warp=None, **self.images)

    def write_field(self, file: str) -> None:
        self.greedy.execute(f"-rf fixed -r {self.transforms} -rc {file} -threads {self.threads}")

    def write_label(self, file: str) -> None:
        label = self.sitk.ReadImage(self.files["moving_label"])
        self.greedy.execute(f"-rf fixed -ri NN -rm label {file} -r {self.transforms}", label=label)


class Elastix(Method):
    """itk-elastix, its own affine and B-spline parameters, but from where the headers put the images.

    itk imports torch wherever that is installed, which the whole command's seconds and memory show.
    """

    def load(self) -> None:
        import itk

        self.itk = itk
        self.images = [itk.imread(self.files[role], itk.F) for role in ("fixed", "moving")]
        self.parameters = itk.ParameterObject.New()
        for kind in ("affine", "bspline"):
            parameters = self.parameters.GetDefaultParameterMap(kind)
            parameters["AutomaticTransformInitialization"] = ["false"]
            self.parameters.AddParameterMap(parameters)

    def register(self) -> None:
        # the number of threads is ITK's, by the environment: number_of_threads ends in a segmentation fault (0.25.4)
        self.transforms = self.itk.elastix_registration_method(*self.images, parameter_object=self.parameters)[1]

    def write_field(self, file: str) -> None:
        self.itk.imwrite(self.itk.transformix_deformation_field(self.images[1], self.transforms), file, True)

    def write_label(self, file: str) -> None:
        label = self.itk.imread(self.files["moving_label"], self.itk.F)
        for index in range(self.transforms.GetNumberOfParameterMaps()):
            self.transforms.SetParameter(index, "FinalBSplineInterpolationOrder", "0")
        self.itk.imwrite(self.itk.transformix_filter(label, self.transforms), file)


class ConvexAdam(Method):
    """convexAdam's MIND registration; no affine, and both images on the fixed image's grid, as it asks for."""

    def load(self) -> None:
        import SimpleITK as sitk
        import torch
        from convexAdam.convex_adam_MIND import convex_adam_pt

        torch.set_num_threads(self.threads)
        self.sitk, self.convex_adam, self.torch = sitk, convex_adam_pt, torch
        self.moving, self.fixed = (sitk.ReadImage(self.files[role], sitk.sitkFloat32) for role in ("moving", "fixed"))

    def on_fixed(self, image: Any, interpolator: str) -> Any:
        """An image on the fixed image's grid, as the array that the tool takes."""
        resampled = self.sitk.Resample(image, self.fixed, self.sitk.Transform(), getattr(self.sitk, interpolator))
        return self.sitk.GetArrayFromImage(resampled)

    def register(self) -> None:
        images = (self.sitk.GetArrayFromImage(self.fixed), self.on_fixed(self.moving, "sitkLinear"))
        options = {"dtype": self.torch.float32, "device": self.torch.device("cpu")}
        self.displacement = self.convex_adam(*images, **options)  # voxels, (z, y, x, 3)

    def write_field(self, file: str) -> None:
        import numpy as np

        steps = np.reshape(self.fixed.GetDirection(), (3, 3)) * self.fixed.GetSpacing()
        field = self.displacement[..., ::-1] @ steps.T
        image = self.sitk.GetImageFromArray(field.astype(np.float32), isVector=True)
        image.CopyInformation(self.fixed)
        self.sitk.WriteImage(image, file, True)

    def write_label(self, file: str) -> None:
        import numpy as np
        from scipy.ndimage import map_coordinates

        label = self.on_fixed(self.sitk.ReadImage(self.files["moving_label"]), "sitkNearestNeighbor")
        places = np.indices(label.shape) + self.displacement.transpose(3, 0, 1, 2)
        image = self.sitk.GetImageFromArray(map_coordinates(label, places, order=0))
        image.CopyInformation(self.fixed)
        self.sitk.WriteImage(image, file)


class FireAnts(Method):
    """fireants: affine, then greedy; local correlation in windows of 5 voxels, the settings of its tutorial.

    It stops at an axis of fewer voxels than its smallest level has; there the images go on as they end.
    """

    SMALLEST = 32  # its MIN_IMG_SIZE

    def load(self) -> None:
        import SimpleITK as sitk
        import torch
        from fireants.io import BatchedImages, Image

        torch.set_num_threads(self.threads)
        self.batched, self.image, self.sitk = BatchedImages, Image, sitk
        # its losses have an epsilon, so they want intensities of this range
        read = [sitk.ReadImage(self.files[role], sitk.sitkFloat32) for role in ("fixed", "moving")]
        self.size = read[0].GetSize()
        scaled = [sitk.RescaleIntensity(self.large_enough(image), 0, 1) for image in read]
        self.images = [BatchedImages([Image(image, device="cpu")]) for image in scaled]

    def large_enough(self, image: Any) -> Any:
        """With the last voxels of short axes repeated."""
        missing = [max(0, self.SMALLEST - voxels) for voxels in image.GetSize()]
        return self.sitk.ZeroFluxNeumannPad(image, [0, 0, 0], missing)

    def as_large_as_fixed(self, image: Any) -> Any:
        """Without what was added."""
        x, y, z = self.size
        return image[:x, :y, :z]

    def register(self) -> None:
        from fireants.registration.affine import AffineRegistration
        from fireants.registration.greedy import GreedyRegistration

        common = {"cc_kernel_size": 5, "progress_bar": False}
        affine = AffineRegistration([4, 2, 1], [200, 100, 50], *self.images, optimizer_lr=3e-3, **common)
        affine.optimize()
        options = {"init_affine": affine.get_affine_matrix().detach(), "smooth_grad_sigma": 1.0, "optimizer_lr": 0.5}
        self.result = GreedyRegistration([4, 2, 1], [200, 100, 50], *self.images, **options, **common)
        self.result.optimize()

    def write_field(self, file: str) -> None:
        self.result.save_as_ants_transforms(file)
        self.sitk.WriteImage(self.as_large_as_fixed(self.sitk.ReadImage(file)), file, True)

    def write_label(self, file: str) -> None:
        from torch.nn.functional import grid_sample

        label = self.large_enough(self.sitk.ReadImage(self.files["moving_label"], self.sitk.sitkFloat32))
        values = self.image(label, device="cpu").array
        places = self.result.get_warped_coordinates(*self.images).detach()
        warped = grid_sample(values, places, mode="nearest", align_corners=True)
        image = self.sitk.GetImageFromArray(warped[0, 0].numpy())
        image.CopyInformation(self.images[0].images[0].itk_image)
        self.sitk.WriteImage(self.as_large_as_fixed(image), file)


class Ours(Method):
    """This project.

    Args:
        model: "intensities" registers these, without a network; None takes the shipped weights.
        steps: of refinement; None for the default.
        arguments: those of :class:`Method`; the options are further settings.
    """

    def __init__(self, model: str | None, steps: int | None, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments)
        self.model, self.options = model, {"initial_alignment": "world"} | options
        self.options |= {} if steps is None else {"refine_steps": steps}

    def load(self) -> None:
        import torch
        from monai.transforms import LoadImage

        from istn_monai import Registration

        torch.set_num_threads(self.threads)
        load = LoadImage(image_only=True, ensure_channel_first=True, reader="NibabelReader")
        self.pair = {f"{role}_image": load(self.files[role]) for role in ("moving", "fixed")}
        self.label = load(self.files["moving_label"])
        self.registration = Registration(self.model, device="cpu", qa=False, **self.options)

    def register(self) -> None:
        self.registered = self.registration.registered(self.pair)

    def write_field(self, file: str) -> None:
        import SimpleITK as sitk

        result = self.registration.content("postprocessing")(self.registered)
        field = result["displacement"].float()  # RAS, (3, x, y, z)
        field = (field * field.new_tensor([-1, -1, 1]).view(3, 1, 1, 1)).permute(3, 2, 1, 0).contiguous()
        image = sitk.GetImageFromArray(field.cpu().numpy(), isVector=True)
        image.CopyInformation(sitk.ReadImage(self.files["fixed"]))
        sitk.WriteImage(image, file, True)

    def write_label(self, file: str) -> None:
        from istn_monai.io.images import write_image

        write_image(self.registration(self.pair | {"moving_label": self.label})["warped_label"], Path(file))


#: by method: the package that it needs, and what makes it
METHODS: dict[str, tuple[str, Callable[..., Method]]] = {
    "SyNQuick": ("antspyx", lambda *a: Ants("antsRegistrationSyNQuick[s]", *a)),
    "SyN": ("antspyx", lambda *a: Ants("SyN", *a)),
    "greedy": ("picsl_greedy", lambda *a: Greedy("NCC 2x2x2", True, *a)),
    "greedy_deformable": ("picsl_greedy", lambda *a: Greedy("NCC 2x2x2", False, *a)),
    "greedy_nmi": ("picsl_greedy", lambda *a: Greedy("NMI", True, *a)),
    "elastix": ("itk-elastix", Elastix),
    "convexAdam": ("convexAdam", ConvexAdam),
    "fireants": ("fireants", FireAnts),
    "ours_intensities": ("istn-monai", lambda *a: Ours("intensities", None, *a)),
    "ours_mind": ("istn-monai", lambda *a: Ours("intensities", None, *a, representation="mind")),
    "ours_smooth": ("istn-monai", lambda *a: Ours("intensities", None, *a, **SMOOTH)),
    "ours_smooth_2mm": ("istn-monai", lambda *a: Ours("intensities", None, *a, **SMOOTH_2MM)),
    "ours_checkpoint": ("istn-monai", lambda *a: Ours(os.environ[CHECKPOINT], None, *a)),
    "ours_one_pass": ("istn-monai", lambda *a: Ours(None, 0, *a)),
    "ours_refined": ("istn-monai", lambda *a: Ours(None, None, *a)),
    "ours_bfloat16": ("istn-monai", lambda *a: Ours(None, None, *a, itn_dtype="bfloat16")),
}


def installed() -> dict[str, str | None]:
    """Versions of the packages of all methods, and of what they compute with."""
    versions: dict[str, str | None] = {}
    for package in [*(package for package, _ in METHODS.values()), "torch", "numpy", "SimpleITK", "itk-core"]:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def measure(stdout: str, stderr: str, *command: str) -> dict[str, float]:
    """What a command needs from start to end: ``returncode``, seconds, and the largest resident memory."""
    with open(stdout, "wb") as out, open(stderr, "wb") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "returncode": process.returncode,
        "command_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def main(name: str, case: str, folder: str, output: str, threads: str, own_label: str = "") -> None:
    method = METHODS[name][1](case, Path(folder), Path(output), int(threads))
    method.load()
    start = time.perf_counter()
    method.register()
    seconds = time.perf_counter() - start
    method.write_field(str(Path(output) / FIELD))
    if own_label:
        method.write_label(str(Path(output) / OWN_LABEL))
    print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["installed"]:
        print(json.dumps(installed()))
    elif sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(*sys.argv[1:])
