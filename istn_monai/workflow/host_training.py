"""Training that a host starts: it gives the data, and wants the trained network in the bundle that it serves.

MONAI Label puts lists of labelled images in the place of the bundle's data and runs ``train.json`` as it is. So the
configuration asks here whether that is so. The results of each such training go to a folder of their own in the served
bundle, and the best network, which is the one it started from if nothing was better, takes the place of ``model.pt``.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from monai.bundle import ConfigParser

from istn_monai.workflow.checkpoints import BEST, Checkpoints
from istn_monai.workflow.distributed import gathered
from istn_monai.workflow.settings import caller_of_type

ORIGINAL = "original.pt"


def is_hosted() -> bool:
    """Whether the configuration under evaluation was given its training data by a host."""
    parser = caller_of_type(ConfigParser)
    return parser is not None and isinstance(parser.get("train#dataset#data"), list)


def output_folder(bundle_root: str, run: str) -> str:
    """Where a training writes: by default under the current folder, for a host in the served bundle, a new one."""
    if not is_hosted():
        return f"runs/{run}"
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
        shutil.copy2(served, first)
    partial = served.with_suffix(".part")  # moved into place whole: requests are served meanwhile
    shutil.copyfile(checkpoints.best_file, partial)
    os.replace(partial, served)
    return f"served from now on: {served}; the first network is {first}"
