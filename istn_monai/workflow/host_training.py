"""Training that a host starts: it gives the data, and wants the trained network in the bundle that it serves.

MONAI Label puts lists of labeled images in the place of the bundle's data and runs ``train.json`` as it is. So the
configuration asks here whether that is so. The results of each such training go to a folder of their own in the served
bundle, and the best network, which is the one it started from if nothing was better, takes the place of ``model.pt``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from istn_monai.folders import BEST
from istn_monai.io.datalist import Item
from istn_monai.io.paths import replacing
from istn_monai.network_settings import NetworkSettings
from istn_monai.workflow.checkpoints import Checkpoints
from istn_monai.workflow.datasets import is_hosted
from istn_monai.workflow.distributed import gathered
from istn_monai.workflow.settings import run_folder

ORIGINAL = "original.pt"


def copy_once(bundle: str | os.PathLike, served: str | os.PathLike) -> Path:
    """Copies a bundle to the folder that a host serves it from, whole or not at all; what is there already is left.

    Args:
        bundle: its folder.
        served: the new folder.
    """
    folder = Path(served).absolute()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as part:
        shutil.copytree(bundle, Path(part) / "bundle", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        try:
            os.rename(Path(part) / "bundle", folder)
        except OSError:
            if not folder.is_dir():  # else another server, started at the same time, was faster
                raise
    return folder


def output_folder(data: Sequence[Item], bundle_root: str, run_name: str, settings: NetworkSettings) -> str:
    """Where a training writes: by default under the current folder, for a host in the served bundle, a new one.

    Args:
        data: of training.
        bundle_root: the bundle's folder.
        run_name: names the run's folder, with loss and transformation.
        settings: of the network.
    """
    if not is_hosted(data):
        return run_folder(run_name, settings.loss, settings.transformation)
    now = gathered(time.strftime("%Y-%m-%d_%H-%M-%S"))[0]  # several processes write to one folder
    return str(Path(bundle_root) / "runs" / now)


def publish(checkpoints: Checkpoints, bundle_root: str) -> str:
    """Puts the best network of a hosted training into the served bundle; the first one is kept as ``original.pt``.

    Returns:
        A line that says so.
    """
    served = Path(bundle_root) / "models" / BEST
    first = served.with_name(ORIGINAL)
    served.parent.mkdir(parents=True, exist_ok=True)
    if served.exists() and not first.exists():
        with replacing(first) as part:  # a copy that is cut short would be taken for the first network ever after
            shutil.copy2(served, part)
    with replacing(served) as part:  # requests are served meanwhile
        shutil.copyfile(checkpoints.best_file, part)
    return f"served from now on: {served}; the first network is {first}"
