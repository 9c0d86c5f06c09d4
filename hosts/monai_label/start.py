"""Starts MONAI Label with the app in this folder, with one command:

    python hosts/monai_label/start.py STUDIES [--host 127.0.0.1] [--port 8000] [--conf KEY VALUE] ...

Other options go on to ``monailabel start_server`` as they are. Training runs in a process of its own, which inherits
the environment that is made here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

APP = Path(__file__).resolve().parent
SHIM = APP / "without_cuda"
NEEDED = {"monailabel": "pip install --no-deps -r hosts/monai_label/requirements.txt",
          "istn_monai": "pip install --no-deps --no-build-isolation ."}  # fmt: skip


def check_installed() -> None:
    """Ends the program if this Python lacks MONAI Label or istn-monai, and says how to install it."""
    for name, command in NEEDED.items():
        if find_spec(name) is None:
            sys.exit(f"start.py: {name} is not installed in {sys.prefix}: {command}")


def needs_shim() -> bool:
    """Whether torchvision's operators are missing, as beside a PyTorch without CUDA."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        return "torchvision::" in str(error)
    return False


def environment(old: Mapping[str, str], shim: bool) -> dict[str, str]:
    """The server's environment variables: this Python comes first, and the shim if it is needed.

    Args:
        old: those of this process.
        shim: whether it is needed.
    """
    paths = filter(None, [str(SHIM) if shim else "", old.get("PYTHONPATH")])
    path = os.pathsep.join([str(Path(sys.executable).parent), old.get("PATH", os.defpath)])
    # requests run in threads of their own, each of which would keep memory of its own for later ones (glibc)
    return {"MALLOC_ARENA_MAX": "2", **old, "PATH": path, "PYTHONPATH": os.pathsep.join(paths)}


def command(arguments: Sequence[str]) -> list[str]:
    """MONAI Label's command line.

    Args:
        arguments: of this program.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", help="folder of images, with labels in labels/final, or the address of a DICOMweb")
    parser.add_argument("--app", default=str(APP), help="another app, such as MONAI Label's monaibundle")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets all reach the server: see Security in README")
    parser.add_argument("--port", default="8000")
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="see README")
    given, others = parser.parse_known_args(arguments)
    server = [sys.executable, "-m", "monailabel.main", "start_server", "--app", given.app, "--studies", given.studies]
    conf = [text for pair in given.conf for text in ("--conf", *pair)]
    return [*server, "--host", given.host, "--port", given.port, *conf, *others]


def main() -> None:
    """Becomes the server."""
    line = command(sys.argv[1:])
    check_installed()
    os.execve(line[0], line, environment(os.environ, needs_shim()))  # nothing of this program is left


if __name__ == "__main__":
    main()
