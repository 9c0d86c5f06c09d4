"""The command that starts the MONAI Label server, ``hosts/monai_label/start.py``; a real start: tests/integration."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

HOST = Path(__file__).resolve().parents[1] / "hosts" / "monai_label"


@pytest.fixture(scope="module")
def start() -> ModuleType:
    spec = spec_from_file_location("label_start", HOST / "start.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_serves_this_folders_app_to_this_machine_alone(start):
    given = ["studies", "--conf", "bundle", "mine", "--conf", "max_upload_mb", "10", "--log_level", "debug"]
    line = start.command(given)
    expected = f"-m monailabel.main start_server --app {HOST} --studies studies --host 127.0.0.1 --port 8000"
    options = "--conf bundle mine --conf max_upload_mb 10 --log_level debug"
    assert line == [sys.executable, *expected.split(), *options.split()]


def test_another_app_host_and_port_may_be_named(start):
    line = start.command(["--app", "other", "--host", "0.0.0.0", "--port", "9", "--conf", "a", "b", "studies"])
    assert line[4:] == "--app other --studies studies --host 0.0.0.0 --port 9 --conf a b".split()


def test_the_server_inherits_the_environment_and_finds_this_python_first(start):
    old = {"PATH": "/usr/bin", "PYTHONPATH": "/mine", "MONAI_LABEL_SESSIONS": "x"}
    new = start.environment(old, shim=False)
    assert start.environment({"MALLOC_ARENA_MAX": "8"}, shim=False)["MALLOC_ARENA_MAX"] == "8"
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin"])
    assert new == old | {"MALLOC_ARENA_MAX": "2", "PATH": path}
    assert start.environment(old, shim=True)["PYTHONPATH"] == os.pathsep.join([str(HOST / "without_cuda"), "/mine"])
    assert start.environment({}, shim=True)["PYTHONPATH"] == str(HOST / "without_cuda")


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(start, monkeypatch):
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == "monailabel" else name)
    with pytest.raises(SystemExit, match="monailabel is not installed .*-r hosts/monai_label/requirements.txt"):
        start.check_installed()
    for command in start.NEEDED.values():
        assert all((HOST.parents[1] / word).exists() for word in command.split() if "/" in word)


def test_the_shim_is_used_where_torchvision_misses_its_operators_alone(start, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for text, needed in (("raise RuntimeError('operator torchvision::nms does not exist')", True), ("", False)):
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        (tmp_path / "torchvision.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        assert start.needs_shim() is needed
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)


def test_the_shim_declares_the_operators():
    code = "import torch; print(torch.ops.torchvision.nms, torch.ops.torchvision.qnms)"
    environment = os.environ | {"PYTHONPATH": str(HOST / "without_cuda")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torchvision.nms", "torchvision.qnms"]
