"""Threads of a short command, and memory."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from istn_monai import processors


@pytest.mark.parametrize(
    ("looks", "count", "free"),
    [
        ([1] * 5, 4, 4),  # nothing but this process
        ([2] * 5, 2, 1),
        ([3, 2, 3, 2, 2], 8, 7),  # what comes and goes is not busy
        ([9] * 5, 2, 1),  # never none
        ([0] * 5, 2, 2),
        ([None] * 5, 3, 3),  # a system that does not say
    ],
)
def test_processors_that_others_keep_busy_are_left_out(monkeypatch, looks, count, free):
    values = iter(looks)
    monkeypatch.setattr(processors, "running", lambda: next(values))
    monkeypatch.setattr(processors, "PAUSE", 0.0)
    assert processors.free_processors(count) == free


@pytest.mark.parametrize(("text", "number"), [("0.2 0.1 0.1 3/80 11206\n", 3), ("none", None), ("1 2 3 x/4 5", None)])
def test_what_linux_says(tmp_path, text, number):
    (tmp_path / "loadavg").write_text(text)
    assert processors.running(tmp_path / "loadavg") == number
    assert processors.running(tmp_path / "other") is None


def test_what_the_user_has_set_stays(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(processors, "free_processors", lambda count: 1)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", str(before))
        processors.use_free_processors()
        assert torch.get_num_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        processors.use_free_processors()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_of_a_long_command_sleep_soon_unless_the_user_says_how_they_wait(monkeypatch, given, found):
    monkeypatch.setattr(processors.os, "environ", dict(given))
    processors.wait_briefly()
    assert processors.os.environ == given | ({} if found is None else {"GOMP_SPINCOUNT": found})


def test_a_long_command_says_so_before_torch_is_loaded():
    """OpenMP reads the environment once, when torch loads it."""
    code = (
        "import os, sys, istn_monai.__main__ as commands, istn_monai.processors as processors\n"
        "seen = []\n"
        "def wait(): seen.append('torch' in sys.modules)\n"
        "processors.wait_briefly = wait\n"
        "processors.load_libraries(short=True), processors.load_libraries()\n"
        "print(seen)"
    )
    short = code.replace("processors.load_libraries(short=True), ", "")
    said = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, text=True).stdout for each in (code, short)
    ]
    assert said == ["[True]\n", "[False]\n"]


def test_freed_memory_is_kept_unless_the_user_says_how_much(monkeypatch):
    told = []
    library = SimpleNamespace(mallopt=lambda *given: told.append(given))
    monkeypatch.setattr(processors.sys, "platform", "linux")
    monkeypatch.setattr(processors.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(processors.os, "environ", {"MALLOC_TRIM_THRESHOLD_": "1000000"})
    processors.keep_memory()
    assert not told
    monkeypatch.setattr(processors.os, "environ", {})
    processors.keep_memory()
    assert told == [(-1, 2**29), (-3, 2**25)]  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc")
def test_the_c_library_takes_what_it_is_told(monkeypatch):
    taken, own = [], ctypes.CDLL(None)
    library = SimpleNamespace(mallopt=lambda *given: taken.append(own.mallopt(*given)))
    monkeypatch.setattr(processors.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(processors.os, "environ", {})
    processors.keep_memory()
    assert taken == [1, 1]


def test_other_systems_keep_their_ways(monkeypatch):
    monkeypatch.setattr(processors.os, "environ", {})
    monkeypatch.setattr(processors.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    processors.keep_memory()
    monkeypatch.setattr(processors.sys, "platform", "win32")
    monkeypatch.setattr(processors.ctypes, "CDLL", lambda name: 1 / 0)
    processors.keep_memory()
