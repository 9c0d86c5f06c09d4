"""Tests of `istn_monai.workflow.run_lock`: one training at a time in a folder."""

from __future__ import annotations

import os
import signal

import pytest

from istn_monai.workflow.run_lock import HELD, LOCK, hold, release, released_on_error


@pytest.fixture(autouse=True)
def released():
    yield
    release()


def in_another_process(action) -> str:
    """What an action in a forked process says, whether it fails or not."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            HELD.clear()  # another process has none; closing none either
            action()
            os.write(writer, b"held")
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.wait()
    return text


def test_a_second_training_is_refused_in_one_line_that_names_folder_and_process(tmp_path):
    hold(tmp_path)
    said = in_another_process(lambda: hold(tmp_path))
    assert said.startswith(f"another training is at work in {tmp_path} (process {os.getpid()})") and "\n" not in said
    assert "another output_dir" in said
    hold(tmp_path)  # this process may begin again


def test_released_the_folder_is_free_and_clean(tmp_path):
    hold(tmp_path)
    release()
    assert not list(tmp_path.iterdir())
    assert in_another_process(lambda: hold(tmp_path)) == "held"


def test_after_a_failure_the_folder_is_free(tmp_path):
    with pytest.raises(ValueError), released_on_error():
        hold(tmp_path)
        raise ValueError
    assert in_another_process(lambda: hold(tmp_path)) == "held"


def test_a_killed_process_leaves_no_lock_though_its_workers_live(tmp_path):
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        hold(tmp_path)
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(writer, str(worker).encode())
        signal.pause()
    worker = int(os.read(reader, 20))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    try:
        assert (tmp_path / LOCK).exists()
        hold(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
