"""Checks of the values in a request: each takes a value and its name, and raises RequestError.

What MONAI would evaluate, build, refer to or open comes through none of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from istn_monai.io.datalist import HEADERS, IMAGE_SUFFIXES
from istn_monai.workflow.host_requests import FORBIDDEN, RequestError, check_id

Check = Callable[[Any, str], None]
Keys = Mapping[str, Check]

#: a header is nothing without another file, which it names
UPLOAD_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in HEADERS)
MAX_TEXT, MAX_NAME, MAX_DEPTH, MAX_HEADER = 10_000, 150, 6, 1 << 20


def quoted(value: Any) -> str:
    """A value as an error shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def check_plain(value: Any, key: str, depth: int = 0) -> None:
    """RequestError for what MONAI would evaluate, build or refer to, wherever in a value it is, and for odd letters."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{key} must not be nested that deep")
    if isinstance(value, str):
        if value.startswith(("$", "@", "%")):
            raise RequestError(f"{key} must not begin with $, @ or %: got {quoted(value)}, an expression")
        if len(value) > MAX_TEXT or re.search(r"[\x00-\x1f\x7f]", value):
            raise RequestError(f"{key} must be one line of up to {MAX_TEXT} letters, got {quoted(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{key} must be a finite number, got {value}")
    elif isinstance(value, dict):
        for name, item in value.items():
            check_plain(name, f"a key of {key}", depth + 1)
            if name.startswith("_"):
                raise RequestError(f"{key} must not have a {quoted(name)}: requests build no objects")
            check_plain(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, key, depth + 1)


def is_path(value: Any) -> bool:
    """Whether a text would be a path where a name is expected."""
    return isinstance(value, str) and (value.startswith(".") or bool(re.search(r"[/\\\x00]", value)))


def switch(value: Any, key: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false, got {quoted(value)}")


def off(value: Any, key: str) -> None:
    """False, of what the app does not do: a training runs in the background, and archives are not unpacked."""
    if value is not False:
        raise RequestError(f"{key} must be false here, or left out, got {quoted(value)}")


def whole(low: int, high: int) -> Check:
    """A check for a whole number in a range, both ends included."""

    def check(value: Any, key: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise RequestError(f"{key} must be a whole number from {low} to {high}, got {quoted(value)}")

    return check


def number(low: float, high: float) -> Check:
    """A check for a number in a range, both ends included."""

    def check(value: Any, key: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise RequestError(f"{key} must be a number from {low} to {high}, got {quoted(value)}")

    return check


def one_of(names: Callable[[], Iterable[str]] | Iterable[str]) -> Check:
    """A check for one of some names; a function gives those of now."""

    def check(value: Any, key: str) -> None:
        allowed = list(names() if callable(names) else names)
        if value not in allowed:
            status = FORBIDDEN if is_path(value) else 400
            listed = ", ".join(map(repr, allowed)) or "none here"
            raise RequestError(f"{key} must be one of {listed}, got {quoted(value)}", status)

    return check


def matching(pattern: str, what: str) -> Check:
    """A check for a text that a pattern describes whole."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise RequestError(f"{key} must be {what}, got {quoted(value)}", FORBIDDEN if is_path(value) else 400)

    return check


def optional(check: Check) -> Check:
    """A check that also passes an empty text, which forms send, and null."""
    return lambda value, key: None if value is None or value == "" else check(value, key)


def never(reason: str) -> Check:
    """A check that nothing passes."""

    def check(value: Any, key: str) -> None:
        raise RequestError(f"{key} {reason}", FORBIDDEN)

    return check


def anything(value: Any, key: str) -> None:
    """Of a value that is never read."""


def check_new_id(value: Any, key: str) -> None:
    """An id that becomes a file's name, and part of a configuration: plain, without an image's suffix."""
    check_id(value, key)
    pattern = r"\w(?:[\w .()+-]{0,98}[\w)])?"  # what MONAI takes for more than a name in a path, # and ::, is not there
    if not re.fullmatch(pattern, value) or value.endswith(IMAGE_SUFFIXES):
        raise RequestError(
            f"{key} must be a plain name of up to 100 letters, digits, blanks and .()+- for a new image, without an "
            f"image's suffix, got {quoted(value)}"
        )


# --- objects and texts ------------------------------------------------------------------------------------------------


def check_keys(values: Mapping[str, Any], keys: Keys, what: str) -> None:
    """RequestError unless all keys are allowed, and their values are as their checks want them."""
    check_plain(dict(values), what)
    for key, value in values.items():
        if key not in keys:
            listed = ", ".join(name for name, check in keys.items() if check is not anything) or "none"
            raise RequestError(f"{quoted(key)} is not allowed in {what}; allowed: {listed}")
        keys[key](value, key)


def json_object(content: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in a text, or RequestError; an empty text is an empty object."""
    try:
        value = json.loads(content or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object, got {quoted(value)}")
    return value


def json_of(keys: Keys) -> Check:
    """A check for a text that holds a JSON object with these keys."""
    return lambda value, key: check_keys(json_object(value, key), keys, key)


def typed(value: str) -> Any:
    """A query's text as the type that it says: true, false, a whole number, or a text."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return int(value) if re.fullmatch(r"-?[0-9]{1,15}", value) else value


def of_text(check: Check) -> Check:
    """A check of a query's text by what it says."""
    return lambda value, key: check(typed(value), key)


def object_of(value: Any, key: str) -> dict[str, Any]:
    """A JSON object, or RequestError."""
    if not isinstance(value, dict):
        raise RequestError(f"{key} must be a JSON object, got {quoted(value)}")
    return value


# --- uploads ----------------------------------------------------------------------------------------------------------


def image_name(value: Any, key: str) -> None:
    """The name of an uploaded image: MONAI Label makes a temporary file of its suffix, and an id of the rest."""
    plain = isinstance(value, str) and re.fullmatch(rf"\w[\w .()+-]{{0,{MAX_NAME}}}", value)
    if not plain or not value.endswith(UPLOAD_SUFFIXES):
        listed = ", ".join(UPLOAD_SUFFIXES)
        raise RequestError(
            f"{key} must be an upload with the plain name of an image ({listed}; letters, digits, blanks and .()+-), "
            f"got {quoted(value)}"
        )


def sent_name(value: Any, key: str) -> None:
    """The name of an uploaded image as 3D Slicer sends it: with the path on the viewer's machine, which is not read."""
    absolute = isinstance(value, str) and value.startswith("/") and "/../" not in value
    image_name(value.rpartition("/")[2] if absolute else value, key)


def session_name(value: Any, key: str) -> None:
    """The name of a file in a session: an image, or one of a DICOM series."""
    if not (isinstance(value, str) and re.fullmatch(r"[\w-]{1,100}(\.[0-9]{1,20}){0,30}(\.dcm|\.DCM)?", value)):
        image_name(value, key)


#: of a NRRD header, wherever it stands: teem ends a line at a carriage return, too
NAMED_BY_NRRD = re.compile(rb"(?i)data\s*file\s*:")
METAIMAGE = re.compile(rb"(?i)\s*\w+\s*[=:]|.*ElementDataFile", re.DOTALL)
IN_ITSELF = re.compile(rb"(?i)ElementDataFile[ \t]*[=:][ \t]*LOCAL[ \t]*\r?\n")


def check_inline(head: bytes, key: str) -> None:
    """RequestError for an image whose header names another file as its data: it would be read from the server.

    Args:
        head: the first bytes of the upload, ``MAX_HEADER`` if it has as many.
        key: names the upload.
    """
    if head.startswith(b"NRRD"):
        header = re.split(rb"\r?\n\r?\n", head, maxsplit=1)
        if len(header) == 1 or NAMED_BY_NRRD.search(header[0]):
            raise RequestError(f"{key} must hold its data: this NRRD header names another file", FORBIDDEN)
    elif METAIMAGE.match(head):  # only what cannot be understood in another way passes: readers differ in blanks
        named = len(re.findall(rb"(?i)ElementDataFile", head))
        if not named or named != len(IN_ITSELF.findall(head)):
            raise RequestError(f"{key} must hold its data: this MetaImage header names another file", FORBIDDEN)


# --- replies ----------------------------------------------------------------------------------------------------------

PART = r"[^\s/'\"<>:;,()\[\]{}|=`]"
PATH = re.compile(rf"(?<![\w:/.>#])/(?:{PART}+/)+({PART}*)")


def without_paths(value: Any, roots: Sequence[str]) -> Any:
    """A reply without the server's paths: of each, the last name alone is left.

    Args:
        value: of JSON.
        roots: folders of the server that are looked for first, whatever letters they have.
    """
    if isinstance(value, dict):
        return {key: without_paths(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, roots) for item in value]
    if not isinstance(value, str):
        return value
    for root in sorted(filter(None, roots), key=len, reverse=True):
        value = value.replace(root.rstrip("/") + "/", "/-/")  # a path of which the name is left, too
    return PATH.sub(r"\1", value)
