"""The Python interface: arguments that cannot be meant, and what MONAI's own tools do with our parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from reliability_cases.files import T, content
from reliability_cases.judge import Expected
from reliability_cases.runner import PROBLEM, Case

KIND = "python"
HEAD = """
import copy, pickle
import numpy as np, torch
from pathlib import Path
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImaged, SaveImaged
import istn_monai
from istn_monai import *
blob = torch.zeros(1, 20, 24, 18); blob[:, 6:14, 8:18, 5:12] = 1
m, f = MetaTensor(blob.clone()), MetaTensor(blob.roll(1, 1).clone())
options = dict(model="tiny.pt", refine_steps=0, device="cpu", qa=False)
def register(a=m, b=f, **more):
    return RegisterISTNd(**(options | more))({"moving_image": a, "fixed_image": b})
"""
FINE = "assert torch.isfinite(torch.as_tensor(r['displacement'])).all(); "


def bad(name: str, code: str, *words: str, make: Callable[[], None] = lambda: None) -> Case:
    """Code whose error must have one of the words."""
    return Case(KIND, name, (HEAD + code,), Expected("fails", words), make, way="Python")


def good(name: str, code: str, ending: str = "works", *words: str) -> Case:
    """Code that must run; its own assertions are the check."""
    return Case(KIND, name, (HEAD + code,), Expected(ending, words or ("no words",)), check=nothing_wrong, way="Python")


def nothing_wrong() -> None:
    """AssertionError with what the code found."""
    problem = Path(PROBLEM)
    assert not problem.exists(), problem.read_text(encoding="utf-8")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from registrations()
    yield from citizens()
    yield from parts()


def registrations() -> Iterator[Case]:
    """``RegisterISTNd`` and ``Registration``."""
    for name, image in {
        "nan": "m * float('nan')",
        "one nan": "m.index_fill(1, torch.tensor([3]), float('nan'))",
        "constant": "m * 0",
        "2-D": "m[..., 0]",
        "complex": "m * 1j",
        "no channel": "m[0]",
        "two channels": "torch.cat([m, m])",
        "an array": "m.numpy()",
        "a tensor": "m.as_tensor()",
        "None": "None",
        "a list": "[1, 2]",
        "empty": "m[:, :0]",
        "one slice": "m[:, :1]",
        "1e300": "m.double() * 1e300",
        "a missing path": "'none.nii.gz'",
        "an infinite affine": "MetaTensor(blob, affine=torch.full((4, 4), float('inf')))",
        "a singular affine": "MetaTensor(blob, affine=torch.diag(torch.tensor([1., 0, 1, 1])))",
    }.items():
        words = ("moving_image", "none.nii.gz")
        yield bad(f"moving image {name}", f"r = register({image})", *words)
    for name, image in {
        "int16": "m.mul(100).to(torch.int16)",
        "uint8": "m.mul(100).to(torch.uint8)",
        "float64": "m.double()",
        "bool": "m > 0",
        "float16": "m.half()",
        "requires grad": "MetaTensor(blob.clone().requires_grad_())",
        "not contiguous": "m.transpose(1, 2).contiguous().transpose(1, 2)",
    }.items():
        yield good(f"moving image {name}", f"r = register({image}); {FINE}", "either", "moving_image")
    before = "k = m.clone(); a = m.affine.clone(); register(); assert torch.equal(k, m) and torch.equal(a, m.affine)"
    yield good("inputs are left alone", before)
    yield good("twice the same result", "a, b = register(), register(); assert torch.equal(a['warped'], b['warped'])")
    yield good("under inference_mode", "with torch.inference_mode():\n    r = register(refine_steps=2)\n    " + FINE)
    yield good("under no_grad", "with torch.no_grad():\n    r = register(refine_steps=2)\n    " + FINE)
    yield good(
        "other keys stay",
        "r = RegisterISTNd(**options)({'moving_image': m, 'fixed_image': f, 'x': 3}); assert r['x'] == 3",
    )
    for name, value in {
        "refine_steps": ("-1", "1.5", "'many'", "None", "float('nan')"),
        "device": ("'gpu'", "7"),
        "model": ("'none'", "7", "''"),
        "initial_alignment": ("'guess'",),
        "spatial_size": ("0", "(16, 16)", "'x'"),
        "refine_step": ("3",),
        "qa": ("'maybe'",),
        "config": ("'none.json'",),
        "similarity": ("'x'",),
        "refine_learning_rate": ("-1", "float('nan')", "'fast'"),
    }.items():
        for one in value:
            steps = ", refine_steps=1" if name == "refine_learning_rate" else ""
            yield bad(f"RegisterISTNd({name}={one})", f"r = register({name}={one}{steps})", name)
    yield bad("a pair without its fixed image", "RegisterISTNd(**options)({'moving_image': m})", "fixed_image")
    yield bad(
        "a label on another grid",
        "RegisterISTNd(**options)({'moving_image': m, 'fixed_image': f, 'moving_label': m[:, 1:]})",
        "moving_label",
    )
    yield bad(
        "a label of fractions",
        "RegisterISTNd(**options)({'moving_image': m, 'fixed_image': f, 'moving_label': m * 0.5})",
        "moving_label",
    )


def citizens() -> Iterator[Case]:
    """What MONAI's users do with a transform."""
    yield good(
        "pickle",
        "t = pickle.loads(pickle.dumps(RegisterISTNd(**options))); r = t({'moving_image': m, 'fixed_image': f}); "
        + FINE,
    )
    yield good(
        "deepcopy", "t = copy.deepcopy(RegisterISTNd(**options)); r = t({'moving_image': m, 'fixed_image': f}); " + FINE
    )
    yield good("in a Compose", IN_COMPOSE + FINE)
    yield good("in a DataLoader", LOADER + "assert len(list(DataLoader(d, batch_size=1, num_workers=0))) == 2")
    forked = "assert len(list(DataLoader(d, batch_size=1, num_workers=1, multiprocessing_context='fork'))) == 2"
    yield good("in a DataLoader that forks", LOADER + forked)
    yield good("saved under the moving file's name", SAVED)
    map_transform = (
        "from monai.transforms import MapTransform; assert isinstance(RegisterISTNd(**options), MapTransform)"
    )
    yield good("MapTransform", map_transform)
    words = ("inverse", "invert", "traced", "applied")
    yield good("Invertd does something or says no", INVERTED, "either", *words)
    yield good("monai.bundle.load has the trained weights", LOADED, "works", "load")


IN_COMPOSE = """
keys = ["moving_image", "fixed_image"]
load = LoadImaged(keys, ensure_channel_first=True)
r = Compose([load, RegisterISTNd(**options)])({"moving_image": "m.nii.gz", "fixed_image": "f.nii.gz"})
"""
LOADER = """
d = Dataset([{"moving_image": "m.nii.gz", "fixed_image": "f.nii.gz"}] * 2, RegisterISTNd(**options))
"""
SAVED = """
r = register("m.nii.gz", "f.nii.gz")
SaveImaged(["warped"], output_dir="saved", output_postfix="w", print_log=False)(r)
n = [str(file) for file in Path("saved").rglob("*.nii.gz")]
assert n and all(name.endswith("m_w.nii.gz") for name in n), n
"""
INVERTED = """
from monai.transforms import Invertd
t = RegisterISTNd(**options)
r = t({"moving_image": m, "fixed_image": f})
i = Invertd("warped", t, orig_keys="moving_image")(r)
assert i["warped"].shape != r["warped"].shape or not torch.equal(i["warped"], r["warped"]), "Invertd does nothing"
"""
LOADED = """
import monai
b = Path(istn_monai.__file__).parents[1] / "bundle"
n = monai.bundle.load(b.name, bundle_dir=str(b.parent))
k = n if isinstance(n, dict) else n.state_dict()
k, w = k.get("model", k), torch.load(b / "models" / "model.pt", weights_only=True)
assert all(torch.equal(w[name], k[name]) for name in w), "other weights"
"""
REFINED = """
t = spatial_transformation("affine", ({size}))
fixed = torch.rand(1, 1, {size})
Refiner(steps=2).register(t, {moving}, fixed)
"""


def parts() -> Iterator[Case]:
    """Layers, losses, transforms, readers."""
    words = ("moving", "finite", "nan", "loss")
    for dims, size in {"2-D": "16, 16", "3-D": "16, 16, 16"}.items():
        code = REFINED.format(size=size, moving="fixed * float('nan')")
        yield bad(f"Refiner, nan moving image in {dims}", code, *words)
    other = REFINED.format(size="16, 16, 16", moving="fixed[:, :, :8]")
    yield bad("Refiner, other sizes", other, "size", "shape", "16")
    yield bad("Refiner, steps of -1", "Refiner(steps=-1)", "steps")
    yield bad("Refiner, steps of 1.5", "Refiner(steps=1.5)", "steps")
    yield bad("Refiner, learning_rate of nan", "Refiner(steps=2, learning_rate=float('nan'))", "learning_rate")
    yield bad(
        "Warp, other sizes",
        "Warp()(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 2, 8, 8, 8))",
        "ddf",
        "shape",
        "displacement",
    )
    yield bad(
        "spatial_transformation of an unknown kind",
        "spatial_transformation('rigid', (16, 16, 16))",
        "transformation",
        "kind",
        "rigid",
    )
    yield bad("spatial_transformation of size 0", "spatial_transformation('affine', (0, 16, 16))", "spatial_size")
    yield bad("NetworkSettings, unknown loss", "NetworkSettings(loss='x')", "loss")
    yield bad("NetworkSettings, spacing of nan", "NetworkSettings(spacing=float('nan'))", "spacing")
    yield bad("ISTNLoss, unknown variant", "ISTNLoss('x')", "variant", "loss")
    yield bad("read_points of an image", "read_points('m.nii.gz')", "m.nii.gz")
    yield bad("read_transform of an image", "read_transform('m.nii.gz')", "m.nii.gz")
    yield bad(
        "read_transform of half a file", f"read_transform('{T}')", T, make=content(T, lambda old: old[: len(old) // 2])
    )
    yield bad("write_points as .txt", "write_points(Points(torch.rand(1, 3), ('a',)), 'p.txt')", "p.txt")
    yield bad("CheckPaird, nan", "CheckPaird(3)({'moving_image': m, 'fixed_image': f * float('nan')})", "fixed_image")
    yield bad("LoadPaird, a missing file", "LoadPaird()({'moving_image': 'none.nii.gz'})", "none.nii.gz")
    yield bad("LoadPaird, a number", "LoadPaird()({'moving_image': 7})", "moving_image")
    yield bad("InitialAlignmentd, unknown", "InitialAlignmentd('guess')", "guess", "name")
    grid = "RegistrationGridd(spatial_size=(16, 16, 16), spacing=0)({'moving_image': m, 'fixed_image': f})"
    yield bad("RegistrationGridd, spacing of 0", grid, "spacing")
