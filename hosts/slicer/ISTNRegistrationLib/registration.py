"""One registration with ``istn-monai register`` in a process of its own; it knows Slicer by a ``scene`` alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS_TO_END, LAST_LINES = 10, 15


class RegistrationError(Exception):
    """A registration that cannot start or failed; the text is for the user, ``details`` is what the program printed."""

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


@dataclass
class Result:
    """What a registration left in the scene, and what the QA says of it."""

    transform: Any
    labels: Any
    status: str
    reasons: list[str] = field(default_factory=list)


def command_line(python: str, files: dict[str, Path], model: str, output: Path) -> list[str]:
    """The command line, word by word: no shell reads it.

    Args:
        python: of the environment with istn-monai.
        files: ``moving``, ``fixed``, and maybe ``labels``.
        model: a word of ``MODELS``, or a path; empty for the shipped weights.
        output: folder of the results.
    """
    line = [python, "-m", "istn_monai", "register", str(files["moving"]), str(files["fixed"])]
    line += ["--output_dir", str(output)]
    line += ["--model", model] if model else []
    return line + (["--moving_label", str(files["labels"])] if "labels" in files else [])


class Registration:
    """One registration: saves the volumes, runs the program, and takes its results into the scene.

    Its temporary folder is gone when it is finished, has failed, or is canceled.

    Args:
        scene: Slicer's.
        moving: volume that is moved.
        fixed: volume that it is moved to.
        labels: label map or segmentation of the moving volume, or None.
        model: see :func:`command_line`.
        python: of the environment with istn-monai; empty for Slicer's own.
    """

    def __init__(self, scene: Any, moving: Any, fixed: Any, labels: Any, model: str, python: str) -> None:
        self.scene, self.moving, self.fixed, self.labels = scene, moving, fixed, labels
        self.model, self.python = model, python
        self.path: Any = None  # of the temporary folder
        self.process: Any = None

    def start(self) -> None:
        """Starts the program; RegistrationError if it cannot."""
        self.check()
        python, environment = self.chosen_python()
        for node in self.nodes():
            self.scene.release(node)  # from the result of an earlier run
        self.path = Path(tempfile.mkdtemp(prefix="istn_registration_"))
        try:
            line = command_line(python, self.saved(), self.model, self.path / "result")
            with open(self.path / "log.txt", "wb") as log:
                self.process = subprocess.Popen(
                    line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                    cwd=self.path, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )  # fmt: skip
        except Exception as error:
            self.clean_up()
            raise RegistrationError(f"The registration cannot be started: {error}") from error

    def check(self) -> None:
        """RegistrationError for what cannot be registered."""
        if self.moving is None or self.fixed is None:
            raise RegistrationError("Choose a moving and a fixed volume.")
        if self.moving is self.fixed:
            raise RegistrationError("The moving and the fixed volume are the same: choose two volumes.")
        for node in self.nodes():
            transform, own = self.scene.transform_over(node)
            if transform and (node is self.fixed or not own):
                raise RegistrationError(
                    f"{self.scene.name(node)} is under the transform {transform}, which the registration would not "
                    "see: harden that transform, or take the node out of it (module Transforms)."
                )

    def nodes(self) -> list[Any]:
        """The volumes and, if there are any, the labels."""
        return [node for node in (self.moving, self.fixed, self.labels) if node is not None]

    def chosen_python(self) -> tuple[str, dict[str, str] | None]:
        """The Python to run and its environment variables, None for Slicer's own."""
        if self.python:
            if not Path(self.python).is_file():
                raise RegistrationError(f"There is no Python at {self.python}: choose istn-monai's environment's.")
            return self.python, self.scene.outside()
        own = self.scene.own_python()
        if not own:
            raise RegistrationError("Choose the Python of an environment with istn-monai: Slicer's own has none.")
        return own, None

    def saved(self) -> dict[str, Path]:
        """The files of the volumes, in the temporary folder."""
        files = {key: self.path / f"{key}.nrrd" for key in ("moving", "fixed")}
        self.scene.save_volume(self.moving, files["moving"])
        self.scene.save_volume(self.fixed, files["fixed"])
        if self.labels is not None:
            files["labels"] = self.path / "labels.nrrd"
            self.scene.save_labels(self.labels, self.moving, files["labels"])
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise OSError(f"Slicer did not write {', '.join(missing)}")
        return files

    def is_running(self) -> bool:
        """Whether the program runs."""
        return self.process is not None and self.process.poll() is None

    def finish(self) -> Result:
        """Takes the results into the scene, once the program has ended; RegistrationError if it failed."""
        try:
            if self.process.returncode != 0:
                lines = self.printed()
                last = lines[-1] if lines else f"it ended with code {self.process.returncode}"
                raise RegistrationError(f"The registration failed: {last}", "\n".join(lines[-LAST_LINES:]))
            if not (self.scene.is_there(self.moving) and self.scene.is_there(self.fixed)):
                raise RegistrationError("A volume was removed meanwhile: the result was left out.")
            return self.into_scene(self.path / "result")
        finally:
            self.clean_up()

    def into_scene(self, result: Path) -> Result:
        """Loads the transform and the labels, all or none, and puts the moving volume under the transform."""
        about = f"{self.scene.name(self.moving)} to {self.scene.name(self.fixed)}"
        loaded = []
        try:
            qa = json.loads((result / "report.json").read_text(encoding="utf-8")).get("qa", {})
            loaded.append(self.scene.load_transform(result / "transform.h5", about))
            if self.labels is not None:
                loaded.append(self.scene.load_labels(result / "warped_label.nii.gz", f"labels, {about}"))
            self.scene.apply(loaded[0], self.moving)
        except Exception as error:
            for node in loaded:
                self.scene.remove(node)
            raise RegistrationError(f"The result cannot be loaded: {error}") from error
        transform, labels = (*loaded, None)[:2]
        return Result(transform, labels, qa.get("status", "none"), qa.get("reasons", []))

    def printed(self) -> list[str]:
        """The lines that the program printed."""
        text = (self.path / "log.txt").read_text(encoding="utf-8", errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def cancel(self) -> None:
        """Ends the program, and leaves nothing behind."""
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.clean_up()

    def clean_up(self) -> None:
        """Removes the temporary folder; a file that something still holds open stays, and is no error."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path = None
