"""3D Slicer's module, ``hosts/slicer``, without Slicer: its logic with a scene of files, its panel with stubs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import BUNDLE, random_checkpoint, write_subjects

HOST = Path(__file__).resolve().parents[1] / "hosts" / "slicer"
UI = HOST / "Resources" / "UI" / "ISTNRegistration.ui"
sys.path.insert(0, str(HOST))
from ISTNRegistrationLib.registration import Registration, RegistrationError, command_line  # noqa: E402


class Files:
    """Stands for Slicer's scene: a node is a name with a file, under a transform or not."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.over: dict[str, tuple[str, bool]] = {}
        self.removed: set[str] = set()
        self.unsaved = self.unread = self.own = ""

    def add(self, name: str, file: str | Path) -> str:
        self.nodes[name] = file
        return name

    def save_volume(self, node, file):
        if node != self.unsaved:
            sitk.WriteImage(sitk.ReadImage(str(self.nodes[node])), str(file))

    def save_labels(self, node, volume, file):
        assert volume in self.nodes
        self.save_volume(node, file)

    def name(self, node):
        return node

    def is_there(self, node):
        return node in self.nodes

    def transform_over(self, node):
        return self.over.get(node, ("", False))

    def release(self, node):
        self.over.pop(node, None)

    def load_transform(self, file, name):
        return self.add(name, sitk.ReadTransform(str(file)))

    def load_labels(self, file, name):
        if self.unread:
            raise RuntimeError(self.unread)
        return self.add(name, sitk.ReadImage(str(file)))

    def remove(self, node):
        self.removed.add(node)

    def apply(self, transform, node):
        self.over[node] = (transform, True)

    def own_python(self):
        return self.own

    def outside(self):
        return {**os.environ, "ISTN_OUTSIDE": "1"}


@pytest.fixture
def scene(tmp_path, monkeypatch) -> Files:
    """Two volumes and labels; temporary folders are made where the test can see them."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files = Files()
    moving, fixed = write_subjects(tmp_path / "a folder; $(touch canary)", 2)
    files.add("moving", moving["image"])
    files.add("labels", moving["label"])
    files.add("fixed", fixed["image"])
    return files


def python_that(tmp_path: Path, code: str) -> str:
    """A program in the place of Python, which does something else than register."""
    file = tmp_path / "python"
    file.write_text(f"#!{sys.executable}\nimport os, sys, json, time, shutil\n{code}\n", encoding="utf-8")
    file.chmod(0o755)
    return str(file)


def registration(scene: Files, labels: str | None = None, model: str = "", python: str = sys.executable):
    return Registration(scene, "moving", "fixed", labels, model, python)


def ended(run: Registration, seconds: float = 300) -> Registration:
    end = time.monotonic() + seconds
    while run.is_running() and time.monotonic() < end:
        time.sleep(0.05)
    assert not run.is_running()
    return run


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").iterdir())


# --- the logic --------------------------------------------------------------------------------------------------------


def test_the_command_line_is_words_that_no_shell_reads():
    files = {"moving": Path("/t/moving.nrrd"), "fixed": Path("/t/fixed.nrrd")}
    line = command_line("/my env/bin/python", files, "", Path("/t/result"))
    assert line[0] == "/my env/bin/python" and line[1:4] == ["-m", "istn_monai", "register"]
    assert line[4:] == ["/t/moving.nrrd", "/t/fixed.nrrd", "--output_dir", "/t/result"]
    line = command_line("python", files | {"labels": Path("/t/l.nrrd")}, "/a; rm -rf b", Path("/t/result"))
    assert line[-4:] == ["--model", "/a; rm -rf b", "--moving_label", "/t/l.nrrd"]


def test_a_pair_is_registered_by_the_real_program(scene, tmp_path):
    """The transform maps fixed to moving points: it resamples the moving labels to what the program wrote of them."""
    settings = {"spatial_size": [16, 16, 16], "control_spacing": [8, 4], "device": "cpu"}
    model = Path(random_checkpoint(tmp_path / "models", settings)["ckpt_dir"]) / "model.pt"
    run = registration(scene, "labels", str(model))
    run.start()
    assert len(left(tmp_path)) == 1
    result = ended(run).finish()
    assert left(tmp_path) == [] and scene.over["moving"] == (result.transform, True)
    assert result.status in ("green", "amber", "red") and bool(result.reasons) == (result.status != "green")
    label, fixed = (sitk.ReadImage(str(scene.nodes[name])) for name in ("labels", "fixed"))
    expected = sitk.Resample(label, fixed, scene.nodes[result.transform], sitk.sitkNearestNeighbor, 0)
    values = sitk.GetArrayFromImage(scene.nodes[result.labels])
    assert values.any() and (sitk.GetArrayFromImage(expected) != values).mean() < 0.01


def test_what_the_program_says_of_a_failure_is_shown(scene, tmp_path):
    run = registration(scene, model=str(tmp_path / "nothing"))
    run.start()
    with pytest.raises(RegistrationError, match="The registration failed: istn-monai: model: no such file") as error:
        ended(run).finish()
    assert "nothing" in error.value.details and left(tmp_path) == [] and "moving" not in scene.over


def test_a_program_that_dies_without_a_word_is_a_failure(scene, tmp_path):
    run = registration(scene, python=python_that(tmp_path, "os.kill(os.getpid(), 9)"))
    run.start()
    with pytest.raises(RegistrationError, match="it ended with code -9"):
        ended(run).finish()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "stubborn, code", [("", -15), ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", -9)]
)
def test_a_canceled_run_ends_and_leaves_nothing(scene, tmp_path, monkeypatch, stubborn, code):
    monkeypatch.setattr("ISTNRegistrationLib.registration.SECONDS_TO_END", 1)
    program = f"{stubborn}\nopen('{tmp_path}/started', 'w').close()\ntime.sleep(600)"
    run = registration(scene, python=python_that(tmp_path, program))
    run.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    assert run.is_running() and len(left(tmp_path)) == 1
    run.cancel()
    assert run.process.returncode == code and left(tmp_path) == [] and "moving" not in scene.over
    run.cancel()  # once more changes nothing


def test_the_program_sees_the_environment_from_before_slicer(scene, tmp_path):
    code = f"shutil.copy(sys.argv[4], '{tmp_path}'); print(os.environ['ISTN_OUTSIDE'], os.getcwd()); sys.exit(2)"
    run = registration(scene, python=python_that(tmp_path, code))
    run.start()
    with pytest.raises(RegistrationError, match=f"failed: 1 {tmp_path}/tmp/istn_registration_"):
        ended(run).finish()
    saved, own = (sitk.ReadImage(str(file)) for file in (tmp_path / "moving.nrrd", scene.nodes["moving"]))
    assert np.array_equal(*(sitk.GetArrayFromImage(image) for image in (saved, own)))
    assert np.allclose(saved.GetDirection(), own.GetDirection()) and np.allclose(saved.GetOrigin(), own.GetOrigin())


WHOLE = """
output = sys.argv[sys.argv.index("--output_dir") + 1]
os.makedirs(output)
json.dump({"qa": {"status": "green", "reasons": []}}, open(output + "/report.json", "w"))
import SimpleITK
SimpleITK.WriteTransform(SimpleITK.Euler3DTransform(), output + "/transform.h5")
"""


def test_a_result_is_loaded_whole_or_not_at_all(scene, tmp_path):
    scene.unread = "no such file"
    run = registration(scene, "labels", python=python_that(tmp_path, WHOLE))
    run.start()
    with pytest.raises(RegistrationError, match="The result cannot be loaded: no such file"):
        ended(run).finish()
    assert scene.removed == {"moving to fixed"} and "moving" not in scene.over and left(tmp_path) == []


def test_a_volume_that_was_removed_meanwhile_gets_no_result(scene, tmp_path):
    run = registration(scene, python=python_that(tmp_path, WHOLE))
    run.start()
    ended(run)
    del scene.nodes["fixed"]
    with pytest.raises(RegistrationError, match="removed meanwhile"):
        run.finish()
    assert left(tmp_path) == [] and "moving to fixed" not in scene.nodes


def test_a_further_run_starts_from_the_volumes_own_place(scene, tmp_path):
    scene.over = {"moving": ("an earlier result", True)}
    run = registration(scene, python=python_that(tmp_path, WHOLE))
    run.start()
    assert "moving" not in scene.over
    result = ended(run).finish()
    assert scene.over == {"moving": (result.transform, True)} and result.labels is None and result.status == "green"


def test_what_cannot_be_registered_is_said_before_anything_starts(scene, tmp_path):
    def refused(text: str, run: Registration) -> None:
        with pytest.raises(RegistrationError, match=text):
            run.start()
        assert run.process is None and left(tmp_path) == []

    refused("Choose a moving and a fixed volume", Registration(scene, None, "fixed", None, "", sys.executable))
    refused("are the same", Registration(scene, "fixed", "fixed", None, "", sys.executable))
    refused("no Python at /nowhere", registration(scene, python="/nowhere"))
    refused("Slicer's own has none", registration(scene, python=""))
    refused("cannot be started: .*denied", registration(scene, python=str(BUNDLE / "LICENSE")))
    for node, own in (("moving", False), ("fixed", False), ("fixed", True), ("labels", False)):
        scene.over = {node: ("LinearTransform", own)}
        refused(f"{node} is under the transform LinearTransform", registration(scene, "labels"))
    scene.over, scene.unsaved = {}, "fixed"
    refused("Slicer did not write fixed.nrrd", registration(scene))


def test_slicers_own_python_keeps_slicers_environment(scene):
    scene.own = "/slicer/PythonSlicer"
    assert registration(scene, python="").chosen_python() == ("/slicer/PythonSlicer", None)


# --- the panel --------------------------------------------------------------------------------------------------------


class Stub(SimpleNamespace):
    """A widget of PythonQt: properties are attributes, and signals are connected by name."""

    def connect(self, signal: str, slot: Any) -> None:
        self.__dict__.setdefault("slots", {})[signal] = slot

    def addItem(self, text: str) -> None:
        self.__dict__.setdefault("items", []).append(text)
        self.currentText = self.items[0]

    def currentNode(self) -> Any:
        return self.__dict__.get("node")

    def setCurrentNode(self, node: Any) -> None:
        self.node = node

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    setInterval = setMRMLScene = addWidget = lambda self, value: None


def widgets() -> dict[str, str]:
    """The names and classes of the panel's widgets."""
    return {node.get("name"): node.get("class") for node in ElementTree.parse(UI).iter("widget")}


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    """The module, imported beside stubs of what Slicer brings."""
    qt, slicer, vtk, scripted = (ModuleType(name) for name in ("qt", "slicer", "vtk", "slicer.ScriptedLoadableModule"))
    settings: dict[str, Any] = {}
    qt.QTimer = Stub
    qt.QSettings = lambda: SimpleNamespace(value=settings.get, setValue=settings.__setitem__)
    slicer.errors, slicer.mrmlScene = [], object()
    panel = Stub(**{name: Stub(currentPath="") for name in widgets()})
    slicer.util = SimpleNamespace(
        loadUI=lambda file: panel if Path(file) == UI else None,
        childWidgetVariables=lambda widget: widget,
        errorDisplay=lambda text, detailedText: slicer.errors.append((text, detailedText)),
    )
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleLogic"):
        setattr(scripted, name, type(name, (), {"__init__": lambda self, *_: None}))
    members = {"setup": lambda self: None, "layout": Stub()}
    members["resourcePath"] = lambda self, path: HOST / "Resources" / path
    scripted.ScriptedLoadableModuleWidget = type("Widget", (), members)
    for stub in (qt, slicer, vtk, scripted):
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    spec = spec_from_file_location("ISTNRegistration", HOST / "ISTNRegistration.py")
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def panel(module, scene, monkeypatch) -> Any:
    """The panel of the module, with the two volumes chosen."""
    monkeypatch.setattr(module, "Scene", lambda: scene)
    widget = module.ISTNRegistrationWidget()
    widget.setup()
    widget.ui.movingSelector.node, widget.ui.fixedSelector.node = "moving", "fixed"
    return widget


def click(widget: Any, name: str) -> None:
    getattr(widget.ui, name).slots["clicked(bool)"](False)


def test_run_shows_the_light_and_selects_the_transform(panel, tmp_path):
    ui = panel.ui
    assert (ui.runButton.enabled, ui.cancelButton.enabled) == (True, False)
    ui.pythonPathLineEdit.currentPath = python_that(tmp_path, WHOLE)
    click(panel, "runButton")
    assert (ui.runButton.enabled, ui.cancelButton.enabled, panel.timer.active) == (False, True, True)
    ended(panel.registration)
    panel.timer.slots["timeout()"]()
    assert ui.statusLabel.text == "green: all rules passed" and "#009e73" in ui.lightLabel.styleSheet
    assert ui.transformSelector.node == "moving to fixed"
    assert (ui.runButton.enabled, ui.cancelButton.enabled, panel.timer.active) == (True, False, False)


def test_the_chosen_model_is_what_the_program_gets(panel, module, tmp_path):
    ui = panel.ui
    assert ui.modelComboBox.items == list(module.MODELS)
    ui.pythonPathLineEdit.currentPath = python_that(tmp_path, "print(sys.argv[8:]); sys.exit(1)")
    for text, own, words in (
        ("Intensities: two images of one contrast", "", ["--model", "intensities"]),
        ("Hippocampus, T1-weighted crops", "", []),
        ("Hippocampus, T1-weighted crops", "/runs/mine e", ["--model", "/runs/mine e"]),
    ):
        ui.modelComboBox.currentText, ui.ownModelPathLineEdit.currentPath = text, own
        click(panel, "runButton")
        ended(panel.registration)
        panel.timer.slots["timeout()"]()
        assert ui.statusLabel.text == f"The registration failed: {words}"


def test_the_models_of_the_panel_exist(module):
    for word in filter(None, module.MODELS.values()):
        assert (BUNDLE / "models" / f"{word}.pt").is_file()


def test_a_failure_is_shown_in_a_window_too(panel, module, tmp_path):
    panel.ui.fixedSelector.node = None
    click(panel, "runButton")
    assert panel.ui.statusLabel.text == "Choose a moving and a fixed volume." and panel.registration is None
    panel.ui.fixedSelector.node = "fixed"
    panel.ui.pythonPathLineEdit.currentPath = python_that(tmp_path, "print('one'); print('two'); sys.exit(1)")
    click(panel, "runButton")
    ended(panel.registration)
    panel.timer.slots["timeout()"]()
    assert module.slicer.errors[1] == ("The registration failed: two", "one\ntwo")
    assert panel.ui.runButton.enabled


def test_cancel_and_the_end_of_slicer_end_the_program(panel, tmp_path):
    panel.ui.pythonPathLineEdit.currentPath = python_that(tmp_path, "time.sleep(600)")
    for end in (lambda: click(panel, "cancelButton"), panel.cleanup):
        click(panel, "runButton")
        process = panel.registration.process
        end()
        assert process.poll() is not None and panel.registration is None and left(tmp_path) == []
        assert panel.ui.runButton.enabled and panel.ui.statusLabel.text == "Canceled."


def test_the_python_that_was_chosen_is_remembered(panel, module):
    panel.ui.pythonPathLineEdit.currentPath = "/envs/istn/bin/python"
    click(panel, "runButton")
    again = module.ISTNRegistrationWidget()
    panel.ui.pythonPathLineEdit.currentPath = ""
    again.setup()
    assert again.ui.pythonPathLineEdit.currentPath == "/envs/istn/bin/python"


def test_the_status_has_words_and_a_color_for_all_that_the_qa_may_say(module):
    from istn_monai.qa.rules import STATUS_COLORS

    assert module.COLORS == STATUS_COLORS and set(module.WORDS) == set(STATUS_COLORS)


# --- the scene, and what Slicer needs of files ------------------------------------------------------------------------


class Node:
    """A node of a MRML scene."""

    def __init__(self, kind: str = "vtkMRMLScalarVolumeNode", name: str = "a") -> None:
        self.kind, self.node_name, self.attributes, self.parent, self.storage = kind, name, {}, None, "storage"

    IsA = lambda self, kind: kind == self.kind  # noqa: E731
    GetName = lambda self: self.node_name  # noqa: E731
    GetID = lambda self: f"id of {self.node_name}"  # noqa: E731
    GetAttribute = lambda self, key: self.attributes.get(key)  # noqa: E731
    GetParentTransformNode = lambda self: self.parent  # noqa: E731
    GetStorageNode = lambda self: self.storage  # noqa: E731
    GetSegmentation = lambda self: SimpleNamespace(GetSegmentIDs=lambda ids: ids.append("left"))  # noqa: E731

    def SetName(self, name):
        self.node_name = name

    def SetAttribute(self, key, value):
        self.attributes[key] = value

    def SetAndObserveTransformNodeID(self, number):
        self.parent = number


def test_loaded_nodes_forget_the_temporary_file_and_say_who_made_them(module, monkeypatch):
    slicer, removed, node = module.slicer, [], Node()
    slicer.mrmlScene = SimpleNamespace(GenerateUniqueName=lambda name: f"{name}_1", RemoveNode=removed.append)
    slicer.util.loadTransform = lambda file: node if file == "/t/transform.h5" else None
    scene = module.Scene()
    assert scene.load_transform(Path("/t/transform.h5"), "a to b") is node
    assert node.node_name == "a to b_1" and removed == ["storage"]
    moving = Node()
    scene.apply(node, moving)
    assert moving.parent == "id of a to b_1"
    moving.parent = node
    assert scene.transform_over(moving) == ("a to b_1", True)
    moving.parent = Node(name="other")
    assert scene.transform_over(moving) == ("other", False)
    scene.release(moving)
    assert scene.transform_over(moving) == ("", False)


def test_segments_are_saved_on_the_volumes_grid(module):
    slicer, saved, removed, made = module.slicer, [], [], Node("vtkMRMLLabelMapVolumeNode")
    module.vtk.vtkStringArray = list
    exported = []
    logic = SimpleNamespace(ExportSegmentsToLabelmapNode=lambda *arguments: exported.append(arguments))
    slicer.modules = SimpleNamespace(segmentations=SimpleNamespace(logic=lambda: logic))
    slicer.mrmlScene = SimpleNamespace(AddNewNodeByClass=lambda kind: made, RemoveNode=removed.append)
    slicer.util.exportNode = lambda node, file: saved.append((node, file))
    segmentation, labels, volume = Node("vtkMRMLSegmentationNode"), Node("vtkMRMLLabelMapVolumeNode"), Node()
    module.Scene().save_labels(segmentation, volume, Path("/t/a.nrrd"))
    assert exported == [(segmentation, ["left"], made, volume)] and saved == [(made, "/t/a.nrrd")] and removed == [made]
    module.Scene().save_labels(labels, volume, Path("/t/b.nrrd"))
    assert saved[1] == (labels, "/t/b.nrrd") and removed == [made]


@pytest.mark.parametrize("file", sorted(HOST.rglob("*.py")), ids=lambda file: file.name)
def test_the_code_is_that_of_slicers_python(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    assert "from __future__ import annotations" in text or len(text.splitlines()) == 1
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in ("strict", "slots")]


def test_the_code_uses_widgets_that_the_panel_has():
    names = set(widgets())
    tree = ast.parse((HOST / "ISTNRegistration.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("ui", "self.ui")
    }
    assert len(used) >= 10 and used <= names
    root = ElementTree.parse(UI)
    selectors = {name for name, kind in widgets().items() if kind == "qMRMLNodeComboBox"}
    connected = {node.findtext("receiver") for node in root.iter("connection")}
    assert connected == selectors and {node.findtext("class") for node in root.iter("customwidget")} >= {
        kind for kind in widgets().values() if not kind.startswith("Q")
    }


def test_qt_loads_the_panel(monkeypatch):
    pytest.importorskip("PySide6.QtUiTools")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    code = f"""
import json, sys
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QApplication, QWidget
application = QApplication([])
panel = QUiLoader().load({str(UI)!r})
print(json.dumps({{w.objectName(): w.metaObject().className() for w in [panel, *panel.findChildren(QWidget)]}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    for name, kind in widgets().items():
        assert loaded[name] == (kind if kind.startswith("Q") else "QWidget"), name
