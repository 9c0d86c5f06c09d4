"""How a failure ends a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from istn_monai.workflow.errors import ending_in_one_line, foreseen_cause, said

ROOT = Path(__file__).parents[1]


def chain(*errors: Exception) -> Exception:
    """The first of these errors, raised from the second, and so on."""
    for outer, inner in zip(errors, errors[1:], strict=False):
        outer.__cause__ = inner
    return errors[0]


def ends(error: BaseException, capsys, debug: bool = False) -> tuple[object, str]:
    """The exit code or message, and what was printed to stderr."""
    with pytest.raises(SystemExit) as end, ending_in_one_line("here", debug):
        raise error
    return end.value.code, capsys.readouterr().err


def test_the_first_foreseen_error_of_a_chain_is_the_last_line(capsys):
    error = chain(RuntimeError("MONAI's words"), FileNotFoundError("fixed_image: no such file"), ValueError("deeper"))
    assert ends(error, capsys) == ("here: fixed_image: no such file", "")


def test_an_error_that_nobody_foresaw_is_one_line_too_and_asks_to_be_reported(capsys):
    code, printed = ends(chain(RuntimeError("MONAI's"), TypeError("no such type\nin detail")), capsys)
    assert code.startswith("here: unexpected TypeError: no such type; please report this") and not printed


def test_debug_prints_the_traceback_before_the_line(capsys):
    code, printed = ends(ValueError("bad"), capsys, debug=True)
    assert code == "here: bad" and "Traceback" in printed


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2 GiB", "[enforce fail] not enough memory: you"]
)
def test_too_little_memory_says_what_to_do(text):
    cause = foreseen_cause(chain(RuntimeError("MONAI's words"), RuntimeError(text)))
    assert isinstance(cause, MemoryError) and "spatial_size" in str(cause)


class Broken(torch.utils.data.Dataset):
    """A data set that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise ValueError("moving_image: no such file: a.nii.gz")


def test_an_error_in_a_worker_is_its_own_line():
    with pytest.raises(ValueError) as error:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert said(error.value) == "moving_image: no such file: a.nii.gz"


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_with_one_line_that_says_how_to_go_on(number, code, word):
    program = (
        "import time; from istn_monai.workflow.errors import ending_in_one_line\n"
        "with ending_in_one_line('here'):\n    print('ready', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # jobs in the background of a shell ignore SIGINT
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert printed.strip() == f"here: {word}; nothing that was finished is lost; repeat the command to go on"


def test_a_disk_that_is_full_ends_with_one_line_and_no_crash(tmp_path):
    program = (
        "import resource, torch; from pathlib import Path\n"
        "from istn_monai.geometry.world_transform import WorldField, WorldTransform\n"
        "from istn_monai.io.itk_transforms import write_transform\n"
        "from istn_monai.io.paths import replacing\n"
        "from istn_monai.workflow.errors import ending_in_one_line\n"
        "field = WorldField(torch.rand(3, 20, 20, 20).double(), torch.eye(4).double())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "with ending_in_one_line('here'), replacing(Path('a.h5').absolute()) as part:\n"
        "    write_transform(WorldTransform([field], 3), part)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"here: cannot write {tmp_path}/a.h5: ")
    assert not list(tmp_path.iterdir())
