"""The studies folder as the app's datastore: what is written there is new, and nothing is read or written outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from request_checks import UPLOAD_SUFFIXES, check_new_id

from istn_monai.workflow.host_requests import FORBIDDEN, RequestError, is_inside

CONFLICT = 409


@contextmanager
def unless_whole(file: Path) -> Iterator[None]:
    """Puts back what a file was, or nothing, if writing it fails."""
    old = file.with_name(f".{file.name}.old") if file.exists() else None
    if old:
        shutil.copy2(file, old)
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        if old:
            os.replace(old, file)
        raise
    if old:
        old.unlink()


class StudiesFolder(LocalDatastore):
    """MONAI Label's datastore of a folder, with checks where it trusts a request."""

    def own(self, file: str | os.PathLike) -> str:
        """A file of the folder, or RequestError for a link that leads out of it."""
        if not is_inside(Path(file), Path(self._datastore_path)):
            raise RequestError(f"{Path(file).name!r} leads out of the studies folder: copy the file there", FORBIDDEN)
        return str(file)

    def get_image_uri(self, image_id: str) -> str:
        """The image's file; an empty text if there is none."""
        file = super().get_image_uri(image_id)
        return file and self.own(file)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label's file; an empty text if there is none."""
        file = super().get_label_uri(label_id, label_tag)
        return file and self.own(file)

    def inside(self, image_ids: list[str]) -> list[str]:
        """The ids of images that requests may read."""
        folder = Path(self._datastore_path)
        return [name for name in image_ids if is_inside(Path(super(StudiesFolder, self).get_image_uri(name)), folder)]

    def label_rank(self, image_id: str) -> int:
        """0 for an image with a label that a person has finished, 1 with any other label, 2 with none."""
        tags = self.get_labels_by_image_id(image_id)
        return 0 if DefaultLabelTag.FINAL in tags else 1 if tags else 2

    def list_images(self) -> list[str]:
        """The ids of all images."""
        return self.inside(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The ids of those with a final label."""
        return self.inside(super().get_labeled_images(label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The ids of those without."""
        return self.inside(super().get_unlabeled_images(label_tag, labels))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image under an id that is not taken."""
        name, suffix = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        check_new_id(image_id, "image")
        taken = [f"{image_id}{end}" for end in {suffix, *UPLOAD_SUFFIXES}]
        if image_id in self._datastore.objects or any(os.path.lexists(self.place(file)) for file in taken):
            raise RequestError(f"the datastore has an image {image_id!r} already: choose another id", CONFLICT)
        with unless_whole(Path(self.place(f"{image_id}{suffix}"))):  # half of one would be found and added afterwards
            return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Saves the label of an image, in the place of the one with this tag if there is one."""
        _, suffix = self._to_id(os.path.basename(label_filename))
        file = Path(self._datastore.label_path(label_tag), f"{image_id}{suffix}")
        self.own(file)
        with unless_whole(file):
            saved = super().save_label(image_id, label_filename, label_tag, label_info)
        for other in set(UPLOAD_SUFFIXES) - {suffix}:  # of another format, it would be found in the place of this one
            file.with_name(f"{image_id}{other}").unlink(missing_ok=True)
        return saved

    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels; never what a link leads to."""
        found = self._datastore.objects.get(image_id)
        if found and os.path.islink(self.place(f"{image_id}{found.image.ext}")):
            raise RequestError(f"{image_id!r} is a link: remove it on the server", FORBIDDEN)
        super().remove_image(image_id)

    def _to_id(self, file: str) -> tuple[str, str]:
        """The id in a file's name, and its suffix; MONAI Label takes all after the first dot for that of some."""
        suffix = next((end for end in UPLOAD_SUFFIXES if file.endswith(end)), None)
        return super()._to_id(file) if suffix is None else (file.removesuffix(suffix), suffix)

    def place(self, name: str) -> str:
        """Where an image's file is."""
        return os.path.join(self._datastore.image_path(), name)
