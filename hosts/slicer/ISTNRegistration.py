"""A module of 3D Slicer that registers one volume to another with ``istn-monai register``, in a process of its own.

See README.md in this folder. :class:`Scene` holds every call of Slicer's that a registration makes,
:class:`ISTNRegistrationWidget` is the panel. Slicer 5.4 brings Python 3.9.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from ISTNRegistrationLib.registration import Registration, RegistrationError
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

#: what the panel offers, and the word for it on the command line; no word for the shipped weights
MODELS = {
    "Intensities: two images of one contrast": "intensities",
    "Hippocampus, T1-weighted crops": "",
    "Hippocampus, crops of any contrast": "any_contrast",
}
#: of the QA's status, in the words of docs/qa.md
WORDS = {
    "green": "all rules passed",
    "amber": "inspect the pair",
    "red": "the result is most likely of no use",
    "none": "not judged",
}
COLORS = {"green": "#009e73", "amber": "#e69f00", "red": "#cc3311", "none": "#c3c9d0"}
MADE_BY = "ISTNRegistration"  # an attribute of the transforms that this module makes
PYTHON_SETTING = "ISTNRegistration/python"
POLL_MS = 300


class Scene:
    """The calls of Slicer's that a registration makes."""

    def save_volume(self, node: Any, file: Path) -> None:
        """A volume in its own coordinates; the node keeps its file."""
        slicer.util.exportNode(node, str(file))

    def save_labels(self, node: Any, volume: Any, file: Path) -> None:
        """A label map, or a segmentation on a volume's grid."""
        if not node.IsA("vtkMRMLSegmentationNode"):
            return self.save_volume(node, file)
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        try:
            ids = vtk.vtkStringArray()
            node.GetSegmentation().GetSegmentIDs(ids)
            slicer.modules.segmentations.logic().ExportSegmentsToLabelmapNode(node, ids, labels, volume)
            return self.save_volume(labels, file)
        finally:
            self.remove(labels)

    def remove(self, node: Any) -> None:
        slicer.mrmlScene.RemoveNode(node)

    def name(self, node: Any) -> str:
        return node.GetName()

    def is_there(self, node: Any) -> bool:
        """Whether nobody has removed a node meanwhile."""
        return bool(slicer.mrmlScene.IsNodePresent(node))

    def transform_over(self, node: Any) -> tuple[str, bool]:
        """The name of the transform that a node is under, empty for none, and whether this module made it."""
        parent = node.GetParentTransformNode()
        return ("", False) if parent is None else (parent.GetName(), bool(parent.GetAttribute(MADE_BY)))

    def release(self, node: Any) -> None:
        """Takes a node out of its transform."""
        node.SetAndObserveTransformNodeID(None)

    def load_transform(self, file: Path, name: str) -> Any:
        node = slicer.util.loadTransform(str(file))
        node.SetAttribute(MADE_BY, "1")
        return self.named(node, name)

    def load_labels(self, file: Path, name: str) -> Any:
        return self.named(slicer.util.loadLabelVolume(str(file)), name)

    def named(self, node: Any, name: str) -> Any:
        """Names a node, and forgets its file, which will be gone: Slicer then knows that the node is not saved."""
        node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        if node.GetStorageNode() is not None:
            self.remove(node.GetStorageNode())
        return node

    def apply(self, transform: Any, node: Any) -> None:
        """Puts a node under a transform."""
        node.SetAndObserveTransformNodeID(transform.GetID())

    def own_python(self) -> str:
        """Slicer's own Python, if istn-monai is installed there."""
        return (shutil.which("PythonSlicer") or "") if importlib.util.find_spec("istn_monai") else ""

    def outside(self) -> dict[str, str]:
        """The environment variables that Slicer itself was started with: its own would break another Python."""
        return dict(slicer.util.startupEnvironment())


class ISTNRegistration(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "ISTN Registration"
        parent.categories = ["Registration"]
        parent.dependencies = []
        parent.contributors = ["the istn-monai developers"]
        parent.helpText = "Registers a moving to a fixed volume with istn-monai, and judges the result."
        parent.acknowledgementText = "Lee et al., Image-and-Spatial Transformer Networks, MICCAI 2019."


class ISTNRegistrationLogic(ScriptedLoadableModuleLogic):
    """Registrations for other modules and scripts: ``logic.registration(moving, fixed).start()``."""

    def registration(
        self, moving: Any, fixed: Any, labels: Any = None, model: str = "intensities", python: str = ""
    ) -> Registration:
        """See :class:`Registration`."""
        return Registration(Scene(), moving, fixed, labels, model, python)


class ISTNRegistrationWidget(ScriptedLoadableModuleWidget):
    """The panel, Resources/UI/ISTNRegistration.ui."""

    def setup(self) -> None:
        """Builds the panel, once."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = ISTNRegistrationLogic()
        self.registration: Registration | None = None
        panel = slicer.util.loadUI(self.resourcePath("UI/ISTNRegistration.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        for name in MODELS:
            self.ui.modelComboBox.addItem(name)
        self.ui.pythonPathLineEdit.currentPath = qt.QSettings().value(PYTHON_SETTING) or ""
        self.ui.runButton.connect("clicked(bool)", self.run)
        self.ui.cancelButton.connect("clicked(bool)", self.cancel)
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.look)
        self.show_running(False)

    def cleanup(self) -> None:
        """Before Slicer ends or loads the module again."""
        self.cancel()

    def run(self, *_: Any) -> None:
        """Starts a registration of what is chosen."""
        ui = self.ui
        python = ui.pythonPathLineEdit.currentPath
        qt.QSettings().setValue(PYTHON_SETTING, python)
        own = ui.ownModelPathLineEdit.currentPath
        model = str(Path(own).expanduser().absolute()) if own else MODELS[ui.modelComboBox.currentText]
        nodes = [box.currentNode() for box in (ui.movingSelector, ui.fixedSelector, ui.labelsSelector)]
        registration = self.logic.registration(*nodes, model, python)
        try:
            registration.start()
        except RegistrationError as error:
            return self.show_failure(error)
        self.registration = registration
        self.show_running(True)
        self.show_status("none", "Registering ...")
        return self.timer.start()

    def look(self) -> None:
        """Every now and then: whether the registration has ended."""
        if self.registration is None or self.registration.is_running():
            return
        registration, self.registration = self.registration, None
        self.show_running(False)
        try:
            result = registration.finish()
        except RegistrationError as error:
            return self.show_failure(error)
        self.show_status(result.status, "\n".join([f"{result.status}: {WORDS[result.status]}", *result.reasons]))
        return self.ui.transformSelector.setCurrentNode(result.transform)

    def cancel(self, *_: Any) -> None:
        """Ends a running registration."""
        if self.registration is not None:
            self.registration.cancel()
            self.registration = None
            self.show_status("none", "Canceled.")
        self.show_running(False)

    def show_running(self, running: bool) -> None:
        """Which button may be clicked."""
        self.ui.runButton.enabled = not running
        self.ui.cancelButton.enabled = running
        if not running:
            self.timer.stop()

    def show_status(self, status: str, text: str) -> None:
        """The light and the words beside it."""
        self.ui.lightLabel.styleSheet = f"background-color: {COLORS[status]}; border-radius: 8px;"
        self.ui.statusLabel.text = text

    def show_failure(self, error: RegistrationError) -> None:
        """Says what went wrong, in the panel and in a window with what the program printed."""
        self.show_status("none", str(error))
        slicer.util.errorDisplay(str(error), detailedText=error.details)
