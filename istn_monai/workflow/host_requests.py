"""The bundle served by a host: one request to a pair of files, and the registered pair to the host's reply.

A host such as MONAI Label hands over one image under ``image``, the patient's, and wants the result on its grid under
``pred``. :class:`RequestPaird` comes first in the bundle's preprocessing and makes a pair of it, :class:`Replyd` comes
last in its postprocessing. An item that is a pair already, as on the bundle's command line, passes both unchanged.

A request comes from outside: it names images by their ids in the studies folder, never by a path.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.inferer import refinement_of
from istn_monai.io.datalist import IMAGE_SUFFIXES
from istn_monai.metrics import Metrics, field_metrics, without_nan
from istn_monai.qa.measures import measure, refinement_metrics, registered_pair
from istn_monai.qa.rules import traffic_light
from istn_monai.transforms.keys import (
    GUIDANCE,
    MAP_KEYS,
    MAPS,
    MASK_KEYS,
    ORIGINAL_KEYS,
    PAIR_KEYS,
    POINT_KEYS,
    SIDES,
    Pair,
)

STUDIES = "MONAI_LABEL_STUDIES"  # MONAI Label's server sets it to its studies folder
CACHES = ("MONAI_LABEL_SESSION_PATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH")  # where it keeps images from elsewhere, or in
CACHE = Path.home() / ".cache" / "monailabel"  # this folder
LABEL_FOLDERS = ("labels/final", "labels/original")  # of MONAI Label's datastore, in this order
UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\..*)?")  # how Python's tempfile names the files that the host makes of uploads
MAX_STEPS, MAX_ID = 1000, 250
INTEGERS = ("uint8", "int16", "uint16", "int32")  # types of a result that wrap around
#: what a request may not bring along: keys whose values the bundle's transforms read as files or take as results
OWN_KEYS = {
    "label", *PAIR_KEYS, *MASK_KEYS, *POINT_KEYS, *MAP_KEYS, MAPS, *ORIGINAL_KEYS, GUIDANCE, "initial_alignment",
    "theta", "displacement", "warped", "warped_label", *(f"{side}_representation" for side in SIDES),
}  # fmt: skip
BAD_REQUEST, FORBIDDEN, NOT_FOUND = 400, 403, 404


class RequestError(ValueError):
    """A request that cannot be served as it is.

    Args:
        message: what was expected, what came, what to do.
        status: the HTTP status that says so.
    """

    def __init__(self, message: str, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def is_upload(file: Path) -> bool:
    """Whether a host made this file of an upload: directly in the temporary folder, under a name nobody can guess."""
    folder = Path(tempfile.gettempdir()).resolve()
    return bool(UPLOAD.fullmatch(file.name)) and file.resolve() == folder / file.name and file.is_file()


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, links and ``..`` followed."""
    return file.resolve().is_relative_to(folder.resolve())


def check_apart(studies: str | os.PathLike, folders: Mapping[str, str | os.PathLike]) -> None:
    """ValueError if the studies folder, into which requests write, is in another one of the host's, or holds one.

    Args:
        studies: the folder.
        folders: the others by their names.
    """
    for name, folder in folders.items():
        if is_inside(Path(folder), Path(studies)) or is_inside(Path(studies), Path(folder)):
            raise ValueError(
                f"the studies folder {studies} and the {name} folder {folder} must not lie in each other, because "
                "requests write to the studies: choose another folder for them"
            )


def is_cached(file: Path) -> bool:
    """Whether a host keeps this file: of a session, or of a remote datastore."""
    named = [Path(os.environ[name]) for name in CACHES if os.environ.get(name)]
    return any(is_inside(file, folder) for folder in [*named, CACHE])


def check_id(name: Any, key: str) -> str:
    """A request's id of an image or label, or RequestError: a path is never followed."""
    if not isinstance(name, str):
        raise RequestError(f"{key} must be an id of an image in the datastore, got {type(name).__name__}")
    if not name or len(name) > MAX_ID or name.startswith(".") or re.search(r"[/\\\x00-\x1f]", name):
        raise RequestError(
            f"{key} must be an id of an image in the datastore, such as 'case_01', got {name[:MAX_ID]!r}: paths are "
            "not allowed; upload the image, or put it into the studies folder",
            FORBIDDEN,
        )
    return name


def find_by_id(folders: Sequence[Path], name: str, root: Path) -> str | None:
    """The image file with an id in the first folder that has one, whatever its suffix; None if there is none.

    Args:
        folders: to look in.
        name: checked by :func:`check_id`; may have a suffix, which is tried first.
        root: the studies folder; a link that leads out of it raises an error.
    """
    stem = next((name.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), name)
    names = (
        [name, *(stem + suffix for suffix in IMAGE_SUFFIXES)]
        if stem != name
        else [name + suffix for suffix in IMAGE_SUFFIXES]
    )
    for file in (folder / name for folder in folders for name in names):
        if file.is_file():
            if not is_inside(file, root):
                raise RequestError(f"{name!r} leads out of the studies folder: copy the file there", FORBIDDEN)
            return str(file)
    return None


class RequestPaird(MapTransform):
    """A host's request to a pair: ``image`` becomes ``fixed_image``; ``moving_image`` and ``moving_label`` are found.

    The moving image is the first of these that there is: ``moving_image`` in the request, an id in the datastore; the
    second upload, which MONAI Label calls ``label``; the atlas that the bundle is configured with. Its label is that of
    the same id, or of the id ``moving_label``; or the upload, beside a ``moving_image``; or the atlas's. An image that
    the host has read already is taken as it is.

    Adds ``request``: the names of the moving image and its label, and ``warnings``.

    Args:
        keys: the keys of the pair that a request may fill.
        moving_image: file of the atlas, absolute or relative to ``root``; None for none.
        moving_label: file of its label map.
        root: the bundle's folder.
        studies: the datastore's folder; None is the host's own, or else the folder of the request's image.
        max_steps: number of refinement steps that a request may ask for.
    """

    def __init__(
        self,
        keys: Sequence[str] = PAIR_KEYS,
        moving_image: str | None = None,
        moving_label: str | None = None,
        root: str = ".",
        studies: str | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        atlas = {"moving_image": moving_image, "moving_label": moving_label}
        self.atlas = {key: str(Path(root) / file) for key, file in atlas.items() if file is not None}
        self.studies = studies
        self.max_steps = max_steps

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """A host's data, with the path of a file (or an image) under ``image``, to a pair of paths (or images)."""
        if "image" not in data:
            return dict(data)
        self.check_steps(data.get("refine_steps", 0))
        folder = self.studies_folder(data["image"])
        pair = {"fixed_image": self.fixed(data["image"], folder)} | self.moving(data, folder)
        check_two(pair["fixed_image"], pair["moving_image"])
        warnings = [] if "moving_label" in pair else ["the moving image has no label: the result is the warped image"]
        names = {key: name_of(image) for key, image in pair.items() if key != "fixed_image"}
        kept = {key: value for key, value in data.items() if key not in OWN_KEYS}
        return kept | pair | {"request": names | {"warnings": warnings}}

    def check_steps(self, steps: Any) -> None:
        """RequestError unless a request's number of steps is one: hosts put it into the configuration as it is."""
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= self.max_steps:
            raise RequestError(f"refine_steps must be a whole number from 0 to {self.max_steps}, got {steps!r}")

    def studies_folder(self, image: Any) -> Path:
        """The folder that ids are looked up in: the host's datastore, or what it has fetched of a remote one."""
        studies = self.studies or os.environ.get(STUDIES)
        if studies and Path(studies).is_dir():
            return Path(studies)
        parent = Path(image).parent if isinstance(image, (str, os.PathLike)) else Path()
        return parent if not studies or is_cached(parent) else CACHE

    def fixed(self, image: Any, folder: Path) -> Any:
        """The request's image: an upload, or one that the host found; a path to anywhere else raises an error."""
        if isinstance(image, Tensor):
            return image
        if image == "":  # what the host makes of an unknown id
            raise RequestError("image: the datastore has no image with this id", NOT_FOUND)
        if not isinstance(image, (str, os.PathLike)):
            raise RequestError(f"image must be an id of the datastore or an upload, got {type(image).__name__}")
        file = Path(image)
        if not (is_inside(file, folder) or is_cached(file) or is_upload(file)):
            raise RequestError(f"image must be an id of the datastore or an upload, got {str(image)!r}", FORBIDDEN)
        if not file.exists():
            raise RequestError(f"image: the datastore has no image {file.name!r}", NOT_FOUND)
        return str(file)

    def moving(self, data: Mapping[Hashable, Any], folder: Path) -> dict[str, Any]:
        """The moving image and, if there is one, its label."""
        image, label, upload = (given(data, key) for key in ("moving_image", "moving_label", "label"))
        labels = [folder / name for name in LABEL_FOLDERS]
        own = None
        if image is not None:
            pair = {"moving_image": self.found(image, "moving_image", [folder], folder)}
            own = find_by_id(labels, image, folder) if isinstance(image, str) else None
            own = own if upload is None else self.uploaded(upload)
        elif upload is not None:
            pair = {"moving_image": self.uploaded(upload)}
        elif "moving_image" in self.atlas:
            return dict(self.atlas)
        else:
            raise RequestError(
                "moving_image is missing: give the id of an image in the datastore, upload an image as 'label', or "
                "configure an atlas, moving_image and moving_label in the bundle's inference.json"
            )
        own = own if label is None else self.found(label, "moving_label", labels, folder)
        return pair if own is None else pair | {"moving_label": own}

    def uploaded(self, file: Any) -> Any:
        """An upload's file, or an image that was read already."""
        if isinstance(file, Tensor) or (isinstance(file, (str, os.PathLike)) and is_upload(Path(file))):
            return file
        raise RequestError(f"label must be an upload, got {str(file)!r}; name an image by its id", FORBIDDEN)

    def found(self, name: Any, key: str, folders: Sequence[Path], root: Path) -> Any:
        """The file with an id, or RequestError; an image that was read already is taken as it is."""
        if isinstance(name, Tensor):
            return name
        check_id(name, key)
        file = find_by_id(folders, name, root)
        if file is None:
            raise RequestError(f"{key}: the datastore has no {key.removeprefix('moving_')} {name!r}", NOT_FOUND)
        return file


def check_two(fixed: Any, moving: Any) -> None:
    """RequestError if an image of the datastore were registered to itself, which says nothing."""
    files = [Path(image).resolve() for image in (fixed, moving) if isinstance(image, (str, os.PathLike))]
    if len(files) == 2 and files[0] == files[1]:
        raise RequestError(
            f"moving_image: {Path(moving).name} is the patient's image itself; choose another case, one with labels "
            "(in 3D Slicer and OHIF: among the options)"
        )


def given(data: Mapping[Hashable, Any], key: str) -> Any:
    """A request's value; None if it is missing or an empty text, which is what a form sends."""
    value = data.get(key)
    return None if isinstance(value, str) and not value else value


def name_of(image: Any) -> str:
    """How the reply names an image: never with a path of the server's."""
    if isinstance(image, Tensor):
        return "image"
    return "upload" if is_upload(Path(image)) else Path(image).name


class Replyd(Transform):
    """A registered pair to the host's reply; data without a ``request`` pass unchanged.

    - ``pred``: the moving label ``(1, *fixed)`` on the request's image's own grid, or, without one, the warped image;
      the host takes size and affine from the metadata of ``image``, which are those of the request's image still;
    - ``result``: for the reply's JSON, see :meth:`report`.

    A ``result_dtype`` that cannot hold the values of ``pred`` is an error.

    Args:
        network: a :class:`istn_monai.networks.DisplacementNetwork`, of any weights: it tells what the representations
            are. Without it the rules of QA that need them do not apply.
        soi_labels: groups of label values that it was trained on; None for real-valued maps.
    """

    def __init__(self, network: nn.Module | None = None, soi_labels: Sequence[Sequence[int]] | None = None) -> None:
        self.network = network
        self.soi_labels = soi_labels

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """After ``WarpPaird``, with the ddf ``(D, *S)`` under ``pred``."""
        if "request" not in data:
            return dict(data)
        label = data.get("warped_label")
        output = data["warped"] if label is None else label
        values = output.as_tensor().cpu()
        check_holds(data.get("result_dtype"), values)
        pred = with_affine(values.float() if label is None else narrowed(values), affine_of(output), output)
        return dict(data) | {"pred": pred, "result": self.report(data)}

    def report(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        """What a reply says of a registration, in plain numbers; None for what is not a number.

        ``moving_image``, ``moving_label``: their names; ``warnings``: the request's own notes; ``steps`` and
        ``seconds`` of the refinement; the metrics of the field and of the refinement, by the names that they have
        everywhere, see :func:`istn_monai.metrics.field_metrics` and
        :func:`istn_monai.qa.measures.refinement_metrics`; ``qa``: the pair's ``status`` and the ``reasons`` for it, as
        on the QA page and in ``report.json``.
        """
        refinement = refinement_of(data["pred"])
        done = None if refinement is None else refinement.report
        ddf = convert_to_tensor(data["pred"], track_meta=False, device="cpu")
        metrics = field_metrics(ddf, Grid.of(data["image"]).spacing) | refinement_metrics(done)
        verdict = traffic_light(self.measured(data) or metrics).report()
        qa = {name: verdict[name] for name in ("status", "reasons", "skipped")}
        return without_nan(data["request"] | ({} if done is None else done.numbers()) | metrics | {"qa": qa})

    def measured(self, data: Mapping[Any, Any]) -> Metrics:
        """The metrics of the QA page; none without the network, or of an inferer that kept no representations."""
        if self.network is None or "moving_representation" not in data:
            return {}
        return measure(registered_pair(data, self.network, self.soi_labels))


def narrowed(label: Tensor) -> Tensor:
    """A label map in the smallest type of whole numbers that holds it and that all image formats know."""
    low, high = label.min().item(), label.max().item()
    kinds = (torch.uint8, torch.int16, torch.int32)
    return label.to(next(kind for kind in kinds if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max))


def check_holds(dtype: Any, values: Tensor) -> None:
    """RequestError if a host would wrap values around in the type that a request wants of the result."""
    if dtype not in INTEGERS:
        return
    bounds, low, high = np.iinfo(dtype), values.min().item(), values.max().item()
    if not bounds.min <= low <= high <= bounds.max:
        raise RequestError(
            f"result_dtype {dtype} holds {bounds.min} to {bounds.max}, but the result has values from {low:g} to "
            f"{high:g}: choose a moving image with a label, or leave result_dtype out (3D Slicer asks for uint8)"
        )
