"""Installs the MONAI Deploy App SDK into an environment of its own and runs the application in hosts/monai_deploy.

    python tests/integration/monai_deploy.py [--work FOLDER]

FOLDER keeps the environment for the next time; by default it is temporary. Real data is found through ISTN_DATA_DIR
(default ../shared/data beside the checkout); without it nothing is run. What is checked: see deploy_checks.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("monai_deploy_requirements.txt")
HOST_REQUIREMENTS = ROOT / "hosts" / "monai_deploy" / "requirements.txt"


def environment(folder: Path) -> Path:
    """The Python of an environment with the SDK and this checkout; one that is complete is used again."""
    python, complete = folder / "bin" / "python", folder / "complete.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8") + HOST_REQUIREMENTS.read_text(encoding="utf-8")
    if complete.is_file() and complete.read_text(encoding="utf-8") == wanted:
        return python
    start = time.monotonic()
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", REQUIREMENTS]
    # editable, so that a kept environment runs the code of today
    subprocess.run([*pip, "-e", ROOT], check=True)
    complete.write_text(wanted, encoding="utf-8")
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)
    return python


def main() -> int:
    """Exit code: 0 if all is well, or there is no data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the environment and the results")
    arguments = parser.parse_args()
    data = Path(os.environ.get("ISTN_DATA_DIR", ROOT.parent / "shared" / "data")).expanduser().absolute()
    if not (data / "dicom_hippocampus").is_dir():
        print(f"skipped: no real data in {data}; set ISTN_DATA_DIR")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).expanduser().absolute()
        python = environment(work / "environment")
        checks = Path(__file__).with_name("deploy_checks.py")
        return subprocess.run([python, checks, "--data", data, "--work", work / "runs"]).returncode


if __name__ == "__main__":
    sys.exit(main())
