"""Results that appear together: kills at each step, full disks, two processes, files of others."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import ball, write_nifti

from istn_monai.geometry.world_transform import WorldAffine, WorldField, WorldTransform
from istn_monai.io.itk_transforms import write_displacement, write_transform
from istn_monai.io.locks import InUse, locked_folder
from istn_monai.io.paths import replacing
from istn_monai.io.staging import ResultFolder
from istn_monai.io.whole import check_whole

NAMES = ("image.txt", "page.txt", "report.json")


def results_in(folder) -> ResultFolder:
    return ResultFolder(folder, NAMES, "report.json", ("made_of",))


def write(folder, text: str, names=NAMES[:1]) -> None:
    results = results_in(folder)
    with results.staged():
        for name in names:
            with results.writing(name) as file:
                file.write_text(text, encoding="utf-8")
        with results.writing("report.json") as file:
            file.write_text(json.dumps({"made_of": text, "files": [*names, "report.json"]}), encoding="utf-8")


def state_of(folder) -> dict[str, str]:
    """Names and contents of the files that are to be seen."""
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}


def whole(text: str, names=NAMES[:1]) -> dict[str, str]:
    return {name: text for name in names} | {
        "report.json": json.dumps({"made_of": text, "files": [*names, "report.json"]})
    }


def in_a_process_that_is_killed(action, call: int) -> bool:
    """Does ``action`` in a child that is killed before its n-th change to the disk; whether it got so far."""
    child = os.fork()
    if child == 0:
        counted = 0

        def fatal(function):
            def called(*args, **kwargs):
                nonlocal counted
                counted += 1
                if counted > call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return called

        for name in ("replace", "unlink", "mkdir", "rmdir", "open", "fsync"):
            setattr(os, name, fatal(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_step_leaves_the_old_result_or_the_new_one_or_none_and_the_next_command_finishes(
    tmp_path, before, capfd
):
    """The old result has a file more: it does not stay beside the new one."""
    seen = set()
    for call in range(200):
        folder = tmp_path / str(call)
        folder.mkdir()
        if before:
            write(folder, "old", NAMES[:2])
        if not in_a_process_that_is_killed(lambda folder=folder: write(folder, "new"), call):
            break
        state = state_of(folder)
        if "report.json" in state:  # the mark: all of it is there
            assert state in (whole("old", NAMES[:2]), whole("new"))
        else:
            seen.add("none")
        with results_in(folder).locked():
            state = state_of(folder)
            assert state in ([whole("old", NAMES[:2])] if before else [{}]) + [whole("new")]
            seen.add(state.get("image.txt"))
        write(folder, "new")  # what was begun is known as ours
        assert state_of(folder) == whole("new") and len(list(folder.iterdir())) == 2
    assert call > 10 and {"new", "old" if before else None, "none"} <= seen


def test_a_failure_while_writing_leaves_the_old_result_and_no_rest(tmp_path):
    write(tmp_path, "old")
    results = results_in(tmp_path)
    with pytest.raises(RuntimeError, match="of something else"), results.staged():
        with results.writing("image.txt") as file:
            file.write_text("new", encoding="utf-8")
        raise RuntimeError("of something else")
    assert state_of(tmp_path) == whole("old") and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name, content", [("page.txt", "mine"), ("report.json", "{}"), ("report.json", "no json")])
def test_files_of_others_are_left_alone(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(FileExistsError, match="left alone"):
        write(tmp_path, "new")
    assert state_of(tmp_path) == {name: content}
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")  # a file of others, too
    with pytest.raises(FileExistsError, match="left alone"):
        write(tmp_path, "new")


# --- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from istn_monai.io.locks import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".work")], stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"another process is writing to {tmp_path}"):
            with locked_folder(tmp_path / ".work", wait=False):
                pass
    finally:
        holder.kill()
        holder.wait()
    start = time.monotonic()
    with locked_folder(tmp_path / ".work", wait=False):
        assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_processes_take_turns(tmp_path):
    """Each adds one to a number in a file: none is lost, though each removes the lock's file."""
    (tmp_path / "number").write_text("0", encoding="utf-8")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
            code = 1
            try:
                for _ in range(20):
                    with locked_folder(tmp_path / ".work"):
                        number = int((tmp_path / "number").read_text(encoding="utf-8"))
                        time.sleep(0.0005)
                        (tmp_path / "number").write_text(str(number + 1), encoding="utf-8")
                code = 0
            except BaseException:
                (tmp_path / f"error{os.getpid()}").write_text(traceback.format_exc(), encoding="utf-8")
            finally:
                os._exit(code)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert ends == [0] * 4, [file.read_text(encoding="utf-8") for file in tmp_path.glob("error*")]
    assert (tmp_path / "number").read_text(encoding="utf-8") == "80"


# --- full disks ------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(free: int):
    """No file may become larger than so many bytes: a real write fails, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_in_a_child(file: Path, write: Callable[[Path], object], free: int) -> str:
    """What the error says when a file is written to a full disk; HDF5 crashes at the end of a process that saw one."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            with full_disk(free), replacing(file) as part:
                write(part)
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        text = said.read()
    os.wait()
    return text


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def save_displacement(file):
    write_displacement(noise(3, 20, 20, 20), np.eye(4), file)


def save_field(file):
    write_transform(WorldTransform([WorldField(torch.as_tensor(noise(3, 20, 20, 20)), torch.eye(4).double())], 3), file)


def save_nifti(file):
    nib.save(nib.Nifti1Image(noise(20, 20, 20), np.eye(4)), file)


def save_weights(file):
    torch.save({"weights": torch.rand(50000)}, file)


WRITERS = {
    "a.nii.gz": save_nifti, "b.nii": save_nifti, "displacement.nii.gz": save_displacement, "field.h5": save_field,
    "model.pt": save_weights, "text.json": lambda file: file.write_text(json.dumps(noise(5000).tolist())),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("free", [0, 300, 20000])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, name, free, capfd):
    file = tmp_path / name
    file.write_text("old", encoding="utf-8")
    said = error_in_a_child(file, WRITERS[name], free)
    assert re.search(f"cannot write {file}: .*unchanged", said)
    assert state_of(tmp_path) == {name: "old"}
    with replacing(file) as part:
        WRITERS[name](part)
    assert file.stat().st_size > 20000 and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii", "displacement.nii.gz", "field.h5", "text.json"])
def test_a_file_that_ends_early_is_not_whole(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    check_whole(file)
    content = file.read_bytes()
    for length in [*range(0, 400, 57), *range(400, len(content), len(content) // 40), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(OSError):
            check_whole(file)


def test_a_changed_byte_of_a_compressed_image_is_seen(tmp_path):
    file = tmp_path / "a.nii.gz"
    write_nifti(file, ball((20, 20, 20), (9, 9, 9), 5).astype(np.float32))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(OSError, match="not written whole"):
        check_whole(file)


def test_a_small_transform_is_whole(tmp_path):
    write_transform(WorldTransform([WorldAffine(torch.eye(4).double())], 3), tmp_path / "a.h5")
    check_whole(tmp_path / "a.h5")


def test_what_a_dead_process_left_beside_a_file_is_removed(tmp_path):
    child = os.fork()
    if child == 0:
        try:
            with replacing(tmp_path / "a.json") as part:
                part.write_text("{", encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "a.json") as part:
        part.write_text("{}", encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
