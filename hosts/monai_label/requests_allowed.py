"""What a request to the app may contain: one table of routes, their keys and a check of each; all else is an error.

MONAI Label puts a request's values into the bundle's configuration, into command lines and into file names, without
looking at them. So nothing comes through that is not named here, has another type, or is out of range. This file knows
nothing of MONAI Label or of the server; ``request_guard.py`` asks it before MONAI Label sees a request, and ``main.py``
again before a task runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from request_checks import (
    Check,
    Keys,
    anything,
    check_keys,
    check_new_id,
    json_object,
    json_of,
    matching,
    never,
    number,
    object_of,
    of_text,
    off,
    one_of,
    optional,
    quoted,
    sent_name,
    session_name,
    switch,
    whole,
)

from istn_monai.workflow.host_requests import MAX_STEPS, NOT_FOUND, OWN_KEYS, RequestError, check_id

MODEL = "istn"
RESULT_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")  # that the host can write; a .png would be one slice
TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
FINAL = "final"  # the tag of what annotators have finished
SESSION = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MAX_EPOCHS, MAX_SECONDS, MAX_CASES = 10_000, 7 * 86_400, 1_000_000
METHOD_NOT_ALLOWED = 405

tag = matching(r"\w[\w-]{0,39}", "a plain name, without folders")
person = optional(matching(r"[\w .@+-]{1,100}", "a plain name"))
text = matching(r".{0,10000}", "a text of one line")
session = matching(SESSION, "the id of a session")


def prediction_tag(value: Any, key: str) -> None:
    """A tag under which a result may be saved: never that of what a person has finished."""
    tag(value, key)
    if value == FINAL:
        raise RequestError(f"{key} must not be {FINAL!r}, that of the labels that annotators have finished")


def label_info(value: Any, key: str) -> None:
    """The names and numbers of the structures in a label, as 3D Slicer sends them with one."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestError(f"{key} must be a list of names and numbers, got {quoted(value)}")
    for item in value:
        check_keys(item, {"name": text, "idx": whole(0, 2**31 - 1)}, key)


INFO = {"client_id": person, "label_info": label_info, "comment": text}
LABEL_INFO = INFO | {"model": one_of((MODEL, ""))}  # of which 3D Slicer says that a label is


# --- keys -------------------------------------------------------------------------------------------------------------


def infer_keys(devices: Sequence[str], weights: Callable[[], list[str]]) -> dict[str, Check]:
    """What the parameters of a registration may hold.

    Args:
        devices: names of the host's.
        weights: names of the checkpoints that there are.
    """
    ignored = dict.fromkeys(sorted(OWN_KEYS), anything)
    return {
        "moving_image": optional(check_id),
        "moving_label": optional(check_id),
        "refine_steps": whole(0, MAX_STEPS),
        "device": optional(one_of(devices)),
        "model_filename": one_of(weights),
        "result_extension": optional(one_of(RESULT_SUFFIXES)),
        "result_dtype": optional(one_of(TYPES)),
        "result_compress": switch,
        "restore_label_idx": off,  # OHIF's, of other models
        "save_label": switch,
        "label_tag": prediction_tag,
        "client_id": person,
    } | {key: check for key, check in ignored.items() if key not in ("moving_image", "moving_label")}


def train_keys(devices: Sequence[str], weights: Callable[[], list[str]]) -> dict[str, Check]:
    """What a training request may hold; see :func:`infer_keys`."""
    return {
        "max_epochs": whole(1, MAX_EPOCHS),
        "val_split": number(0, 0.9),
        "pretrained": switch,
        "device": optional(one_of(devices)),
        "model_filename": one_of(weights),
        "client_id": person,
    }


def batch_keys(devices: Sequence[str], weights: Callable[[], list[str]]) -> dict[str, Check]:
    """What a request to register all images may hold; see :func:`infer_keys`."""
    names = ("moving_image", "moving_label", "refine_steps", "device", "model_filename", "label_tag", "client_id")
    infer = infer_keys(devices, weights)
    return {name: infer[name] for name in names} | {"max_batch_size": whole(0, MAX_CASES)}


# --- routes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A request that the app serves.

    Args:
        methods: of HTTP.
        path: a pattern of the whole path, without a slash at its end.
        query: the keys of its query, checked as texts.
        form: those of its form's fields.
        files: those of its uploads, with checks of their names.
        body: those of its JSON object; None for none.
    """

    methods: str
    path: str
    query: Keys = field(default_factory=dict)
    form: Keys = field(default_factory=dict)
    files: Keys = field(default_factory=dict)
    body: Keys | None = None

    def check_pairs(self, pairs: Sequence[tuple[str, str]], keys: Keys, what: str, lists: bool = False) -> None:
        """RequestError unless the pairs of a query or a form are allowed, and none comes twice."""
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None and not lists:
            raise RequestError(f"{quoted(twice)} comes twice in {what}")
        for name, value in pairs:
            if name not in keys:
                raise RequestError(f"{quoted(name)} is not allowed in {what}; allowed: {', '.join(keys) or 'none'}")
            keys[name](value, name)

    def check_query(self, pairs: Sequence[tuple[str, str]]) -> None:
        """RequestError unless a query is allowed."""
        self.check_pairs(pairs, self.query, "the query")

    def check_form(self, fields: Sequence[tuple[str, str]], uploads: Sequence[tuple[str, str]]) -> None:
        """RequestError unless a form's fields, and its uploads' names, are allowed."""
        self.check_pairs(fields, self.form, "the form")
        self.check_pairs(uploads, self.files, "the uploads", lists="files" in self.files)

    def check_body(self, content: bytes) -> dict[str, Any]:
        """The JSON object of a body, or RequestError."""
        values = json_object(content, "the request")
        check_keys(values, self.body or {}, "the request")
        return values


def find_route(routes: Sequence[Route], method: str, path: str) -> Route:
    """The route of a request, or RequestError: 404 where there is none, 405 for another method."""
    found = [route for route in routes if re.fullmatch(route.path, path.rstrip("/"))]
    for route in found:
        if method in route.methods.split():
            return route
    status = METHOD_NOT_ALLOWED if found else NOT_FOUND
    raise RequestError(f"this app does not serve {method[:10]} {path.strip('/')[:100]}; see its README", status)


def all_routes(devices: Sequence[str], weights: Callable[[], list[str]]) -> tuple[Route, ...]:
    """Everything that the app serves; see :func:`infer_keys`."""
    credentials = dict.fromkeys(("username", "password", "grant_type", "scope", "client_id", "client_secret"), text)
    return (
        Route("GET HEAD", r"|/docs|/openapi\.json|/favicon\.ico|/info|/auth|/auth/token/valid"),
        Route("POST", r"/auth/token", form=credentials),
        Route("POST", r"/activelearning/random", body={"client_id": person}),
        *infer_routes(devices, weights),
        *task_routes(devices, weights),
        *session_routes(),
        *image_routes(),
        *label_routes(),
    )


def infer_routes(devices: Sequence[str], weights: Callable[[], list[str]]) -> list[Route]:
    """Registration of one image."""
    # MONAI Label would take these for its own
    own = {"label": never("must be an upload; name a moving image by moving_image")}
    own |= {key: never("must be an id in the query, not among the parameters") for key in ("image", "session")}
    ids = {"image": optional(check_id), "session_id": optional(session)}
    return [
        Route(
            "POST",
            rf"/infer/{MODEL}",
            query=ids | {"output": one_of(("image", "json", "all"))},
            form={"params": json_of(infer_keys(devices, weights) | own)},
            files={"file": sent_name, "label": sent_name},
        )
    ]


def task_routes(devices: Sequence[str], weights: Callable[[], list[str]]) -> list[Route]:
    """What runs in the background: a training, and the registration of all images."""
    train, background = train_keys(devices, weights), {"run_sync": of_text(off)}
    both = train | {MODEL: lambda value, key: check_keys(object_of(value, key), train, key)}
    status = {"all": of_text(switch), "check_if_running": of_text(switch)}
    images = {"images": one_of(("all", "labeled", "unlabeled"))}
    return [
        Route("GET", r"/train|/batch/infer", query=status),
        Route("DELETE", r"/train|/batch/infer"),
        Route("POST", rf"/train/{MODEL}", query=background | {"enqueue": of_text(switch)}, body=train),
        Route("POST", r"/train", query=background, body=both),
        Route("POST", rf"/batch/infer/{MODEL}", query=background | images, body=batch_keys(devices, weights)),
    ]


def session_routes() -> list[Route]:
    """Images that are not in the datastore and are used more than once."""
    options = {"uncompress": of_text(off), "expiry": of_text(whole(0, MAX_SECONDS))}
    shown = {"update_ts": of_text(switch), "image": of_text(switch)}
    return [
        Route("PUT", r"/session", query=options, form={"client_id": person}, files={"files": session_name}),
        Route("GET", rf"/session/{SESSION}", query=shown),
        Route("DELETE", rf"/session/{SESSION}"),
    ]


def image_routes() -> list[Route]:
    """The datastore and its images."""
    image, old, info = {"image": check_id}, r"/datastore|/datastore/image", json_of(INFO)
    added = {"image": optional(check_new_id)}
    checksum = {"check_sum": matching(r"[A-Za-z0-9:]{1,200}", "a checksum")}
    return [
        Route("GET", r"/datastore", query={"output": one_of(("stats", "all"))}),
        Route("GET", r"/datastore/dataset", query={"limit_cases": of_text(whole(1, MAX_CASES))}),
        Route("PUT", old, query=added, form={"params": info}, files={"file": sent_name}),
        Route("DELETE", old, query={"id": check_id}),
        Route("HEAD", r"/datastore/image", query=image | checksum),
        Route("GET", r"/datastore/image|/datastore/image/info", query=image),
        Route("PUT", r"/datastore/image/info", query=image, form={"info": info}),
    ]


def label_routes() -> list[Route]:
    """The labels of the datastore's images."""
    image, label, info = {"image": check_id}, {"label": check_id, "tag": tag}, json_of(LABEL_INFO)
    path = r"/datastore/label"
    return [
        Route("PUT", path, query=image | {"tag": optional(tag)}, form={"params": info}, files={"label": sent_name}),
        Route("DELETE", path, query={"id": check_id, "tag": tag}),
        Route("HEAD", path, query=image | {"tag": tag}),
        Route("GET", rf"{path}|{path}/info", query=label),
        Route("PUT", rf"{path}/info", query=label, form={"info": info}),
        Route("PUT", r"/datastore/updatelabelinfo", query=label, form={"params": info}),
    ]
