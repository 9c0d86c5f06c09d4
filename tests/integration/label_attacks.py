"""Hostile requests to the MONAI Label app: each is sent to a real server and looked at for what it may have done.

A request that is refused leaves no file, changes none, starts no task, and its answer names no folder of the server.
"""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monai_label_server import SUFFIX, Server

NIFTI, JSON = b"\x1f\x8b not an image", "application/json"
IGNORED = ("logs", "__pycache__", ".lock", "torchinductor_root")
FORM = "application/x-www-form-urlencoded"
MISSING = "123e4567-e89b-12d3-a456-426614174000"  # a session that there is not


@dataclass
class Attack:
    """One request, and the statuses that refuse it."""

    name: str
    method: str
    path: str
    body: bytes | None = None
    kind: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    refused: tuple[int, ...] = (400, 403, 404, 405, 409, 413, 415, 422)


def form(fields: dict[str, Any], uploads: list[tuple[str, str, bytes]]) -> tuple[bytes, str]:
    """A form with uploads of any name, and its content type."""
    boundary = uuid.uuid4().hex
    parts = [(f'name="{key}"', as_bytes(value)) for key, value in fields.items()]
    parts += [(f'name="{key}"; filename="{name}"', content) for key, name, content in uploads]
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def as_bytes(value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()


@dataclass
class Target:
    """What the attacks aim at: folders of the server and ids of its datastore."""

    run: Path
    moving: str
    fixed: str

    @property
    def canary(self) -> Path:
        """A file that appears if a request runs."""
        return self.run / "canary"

    @property
    def call(self) -> str:
        """An expression that makes it."""
        return f"$__import__('pathlib').Path('{self.canary}').touch()"

    @property
    def evil(self) -> Path:
        """A configuration on the server's disk that makes it."""
        file = self.run / "secret" / "evil.json"
        file.write_text(json.dumps({"run": [self.call], "initialize": [self.call]}), encoding="utf-8")
        return file


def trainings(target: Target) -> Iterator[Attack]:
    """F1, F2: all that ends on a command line, in a configuration, or in a file name."""
    call, evil = target.call, str(target.evil)
    bodies: list[dict[str, Any]] = [
        {"force_multi_gpu": True, "gpus": "0", "run_id": f"--initialize={call}"},
        {"run_id": f"--initialize={call}"}, {"run_id": call}, {"run_id": ""}, {"run_id": "finalize"},
        {"force_multi_gpu": True}, {"multi_gpu": True}, {"gpus": "0"}, {"gpus": f"0 --x {call}"},
        {"tracking": evil}, {"tracking": [evil]}, {"tracking": "mlflow", "tracking_uri": str(target.canary)},
        {"tracking_experiment_name": call}, {"tracking_run_name": "a"}, {"bundle_path": str(target.run)},
        {"train#trainer#max_epochs": call}, {"config_file": evil}, {"_requires_": call}, {"imports": [call]},
        {"max_epochs": call}, {"max_epochs": f"%{evil}::run"}, {"max_epochs": "@device"},
        {"max_epochs": {"_target_": "os.system", "command": "true"}}, {"max_epochs": 10**12}, {"max_epochs": -1},
        {"device": call}, {"device": "meta"}, {"device": {"_target_": "torch.device"}}, {"val_split": call},
        {"val_split": 2}, {"pretrained": "$False"}, {"model_filename": "../../../secret/evil.json"},
        {"model_filename": [evil]}, {"client_id": call}, {"client_id": "a\nb"}, {"local_rank": call}, {"model": "a"},
        {"istn": {"run_id": call}}, {"istn": call},
    ]  # fmt: skip
    for body in bodies:
        path = "/train/" if "istn" in body else "/train/istn"
        yield Attack(f"train {json.dumps(body)[:70]}", "POST", path, json.dumps(body).encode())
    yield Attack("train all models", "POST", "/train/", json.dumps({"gpus": "0", "run_id": call}).encode())
    yield Attack("train in the foreground", "POST", "/train/istn?run_sync=true", b"{}")
    yield Attack("train another model", "POST", "/train/..%2Fother", b"{}")
    yield Attack("train with a list", "POST", "/train/istn", b"[1]")
    yield Attack("train with NaN", "POST", "/train/istn", b'{"val_split": NaN}')
    yield Attack("train with JSON as a text", "POST", "/train/istn", b'{"max_epochs": 1}', kind="text/plain")


def origins(target: Target) -> Iterator[Attack]:
    """Requests that a browser sends for a web page: of another server, or of a name that was turned to this one."""
    evil, body = {"Origin": "http://evil.example"}, b'{"max_epochs": 1}'
    yield Attack("train for another page", "POST", "/train/istn", body, headers=evil)
    yield Attack("train for a page of no origin", "POST", "/train/istn", body, headers={"Origin": "null"})
    turned = {"Origin": "http://evil.example:80", "Host": "evil.example:80"}
    yield Attack("train for a name that was turned", "POST", "/train/istn", body, headers=turned)
    yield Attack("read for another page", "GET", "/datastore/?output=all", headers=evil)
    yield Attack("read by a name that was turned", "GET", "/datastore/?output=all", headers={"Host": "evil.example"})
    asked = evil | {"Access-Control-Request-Method": "POST"}
    yield Attack("ask for another page", "OPTIONS", "/train/istn", headers=asked)


def registrations(target: Target) -> Iterator[Attack]:
    """Parameters and uploads of ``/infer``."""
    call, moving, outside = target.call, target.moving, str(target.run / "secret" / f"outside{SUFFIX}")
    good = {"moving_image": moving}
    params: list[dict[str, Any]] = [
        good | {"result_extension": f"/../../studies/made{SUFFIX}"}, good | {"result_extension": ".py"},
        good | {"result_dtype": call}, good | {"result_write_to_file": False}, good | {"skip_writer": True},
        good | {"model": "other"}, good | {"image": outside}, good | {"session": {"image": outside}},
        good | {"save_label": True, "label_tag": "final"}, good | {"save_label": True, "label_tag": "../../x"},
        good | {"save_label": call}, good | {"displayable_configs": {"refine_steps": call}}, good | {"logging": call},
        good | {"refine_steps": call}, good | {"refine_steps": {"_target_": "os.getpid"}}, good | {"refine_step": 50},
        good | {"device": call}, good | {"device": [call]}, {"moving_image": call}, {"moving_image": f"%{outside}"},
        {"moving_image": "@bundle_root"}, {"moving_image": [moving]}, {"moving_image": f"{moving}/../{moving}"},
        {"moving_image": {"_target_": "os.getpid"}}, good | {"theta": call}, good | {"model_filename": outside},
    ]  # fmt: skip
    for values in params:
        body, kind = form({"params": values}, [])
        name = json.dumps({key: value for key, value in values.items() if value != moving})
        yield Attack(f"infer {name[:70]}", "POST", f"/infer/istn?image={target.fixed}", body, kind)
    files = {
        "a.py": NIFTI, "a.json": b"{}", "../../a.nii.gz": NIFTI, "a.mhd": b"", "": NIFTI, "a.bin": NIFTI,
        "a.nii.gz": NIFTI, "a.nrrd": nrrd(outside), "a.mha": metaimage(outside),
    }  # fmt: skip
    for key in ("file", "label"):
        for name, content in files.items():
            body, kind = form({"params": good if key == "file" else {}}, [(key, name, content)])
            yield Attack(f"infer, upload {name!r} as {key}", "POST", f"/infer/istn?image={target.fixed}", body, kind)
    body, kind = form({"params": good}, [])
    for path in (
        f"/infer/istn?image={quote(outside, safe='')}", f"/infer/istn?session_id=..%2F..%2Fsecret&image={target.fixed}",
        f"/infer/istn?image={target.fixed}&image=b", f"/infer/istn?image={target.fixed}&output=dicom_seg",
        f"/infer/other?image={target.fixed}", f"/infer/istn?image={target.fixed}&device=cpu", "/infer/istn?image=link",
        "/infer/istn",
    ):  # fmt: skip
        yield Attack(f"POST {path[:70]}", "POST", path, body, kind, refused=(400, 403, 404, 500))
    for path in ("/infer/wsi/istn?image=a", "/infer/wsi_v2/istn?image=a"):
        yield Attack(path, "POST", path, json.dumps({"params": {"refine_steps": call}}).encode())


def nrrd(file: str) -> bytes:
    """The header of an image of which the data are in another file."""
    head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: {file}\n\n"
    return head.encode()


def metaimage(file: str) -> bytes:
    """The same, of another format."""
    head = f"ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = {file}\n"
    return head.encode()


def datastores(target: Target) -> Iterator[Attack]:
    """F3: uploads, and what is read and removed."""
    moving, config = target.moving, json.dumps({"run": [target.call]}).encode()
    uploads = [
        ("../istn_app/model/istn/configs/train", "train.json", config), ("../istn_app/main", "main.py", config),
        ("../istn_app/model/istn/configs/train", f"train{SUFFIX}", config), ("datastore_v2", "a.json", b"{}"),
        (moving, f"a{SUFFIX}", NIFTI), (f"{moving}{SUFFIX}", f"a{SUFFIX}", NIFTI), (moving, "a.nrrd", NIFTI),
        ("link", f"a{SUFFIX}", NIFTI), ("a/b", f"a{SUFFIX}", NIFTI), ("..", f"a{SUFFIX}", NIFTI),
        ("a#b", f"a{SUFFIX}", NIFTI), ("a::b", f"a{SUFFIX}", NIFTI), ("$a", f"a{SUFFIX}", NIFTI),
        ("%a", f"a{SUFFIX}", NIFTI), ("@a", f"a{SUFFIX}", NIFTI), ("a\nb", f"a{SUFFIX}", NIFTI),
        (".lock", f"a{SUFFIX}", NIFTI), ("new", "a.mhd", NIFTI), ("new", "a.svs", NIFTI), ("new", "a.xml", config),
        ("", f"../../{moving}{SUFFIX}", NIFTI), ("", f"{moving}{SUFFIX}", NIFTI),
        ("new", "a.nrrd", nrrd("/etc/passwd")), ("new", "a.nrrd", nrrd("/etc/passwd").replace(b"raw\n", b"raw\r")),
        ("new", "a.mha", metaimage("/etc/passwd")), ("new", "a.$b.mha", NIFTI), ("new", "a.b#c.mha", NIFTI),
        ("new", "a.mha", metaimage("/etc/passwd").replace(b"File =", b"File :")),
    ]  # fmt: skip
    for image, name, content in uploads:
        body, kind = form({}, [("file", name, content)])
        yield Attack(f"add {image!r} of {name!r}", "PUT", f"/datastore/?image={quote(image, safe='')}", body, kind)
    body, kind = form({"params": {"strategy": {"random": {"ts": "a"}}}}, [("file", f"a{SUFFIX}", NIFTI)])
    yield Attack("add an image with odd information", "PUT", "/datastore/image?image=new", body, kind)
    for image, tag, name in (
        ("nobody", "final", f"a{SUFFIX}"), ("..", "final", f"a{SUFFIX}"), (moving, "../..", f"a{SUFFIX}"),
        (moving, "final", "a.json"), (moving, "a/b", f"a{SUFFIX}"), (moving, "$a", f"a{SUFFIX}"),
    ):  # fmt: skip
        body, kind = form({}, [("label", name, NIFTI)])
        path = f"/datastore/label?image={quote(image, safe='')}&tag={quote(tag, safe='')}"
        yield Attack(f"label {image!r}, {tag!r}, {name!r}", "PUT", path, body, kind)
    for info in ({"path": "/etc"}, {"comment": target.call}, {"_target_": "os.getpid"}, [1]):
        body, kind = form({"info": info}, [])
        yield Attack(f"information {info}"[:70], "PUT", f"/datastore/image/info?image={moving}", body, kind)
    for method, path in (
        ("GET", "/datastore/?output=train"), ("GET", "/datastore/image?image=link"),
        ("GET", "/datastore/image?image=..%2Fsecret%2Foutside"), ("GET", "/datastore/label?label=..&tag=.."),
        ("HEAD", "/datastore/image?image=link"), ("DELETE", "/datastore/?id=link"),
        ("DELETE", "/datastore/image?id=nobody"), ("DELETE", "/datastore/image?id=..%2Fsecret%2Foutside"),
        ("DELETE", f"/datastore/label?id={moving}&tag=..%2F.."),
    ):  # fmt: skip
        yield Attack(f"{method} {path}", method, path)


def others(target: Target) -> Iterator[Attack]:
    """Sessions, batches, and the routes of MONAI Label that the app does not serve."""
    config = json.dumps({"run": [target.call]}).encode()
    for name, content in (
        ("a.json", config),
        ("a.zip", b"PK"),
        ("../../a.nii.gz", NIFTI),
        ("a.nrrd", nrrd("/etc/passwd")),
    ):
        body, kind = form({}, [("files", name, content)])
        yield Attack(f"session of {name!r}", "PUT", "/session/", body, kind)
    body, kind = form({}, [("files", f"a{SUFFIX}", NIFTI)])
    yield Attack("session to unpack", "PUT", "/session/?uncompress=true", body, kind)
    yield Attack("session for ever", "PUT", "/session/?expiry=99999999999", body, kind)
    for method in ("GET", "DELETE"):
        for name in ("..%2F..%2Fstudies", "%2e%2e", ".", MISSING):
            yield Attack(f"{method} session {name}", method, f"/session/{name}")
    for batch in (
        {"gpus": "0"},
        {"multi_gpu": True},
        {"label_tag": "final"},
        {"device": target.call},
        {"images": ["a"]},
    ):
        yield Attack(f"batch {batch}"[:70], "POST", "/batch/infer/istn", json.dumps(batch).encode())
    yield Attack("batch in the foreground", "POST", "/batch/infer/istn?run_sync=true", b"{}")
    for method, path in (
        ("POST", "/scoring/"), ("POST", "/scoring/dice"), ("POST", "/activelearning/other"), ("GET", "/logs/"),
        ("GET", "/logs/gpu"), ("GET", "/proxy/dicom/wado/a"), ("POST", "/proxy/dicom/..%2Fa"), ("GET", "/model/istn"),
        ("DELETE", "/model/istn"), ("POST", "/reload"), ("GET", "/ohif/.."), ("GET", "/static/..%2f..%2fmain.py"),
        ("PATCH", "/train/istn"), ("GET", "/train/istn/../.."),
    ):  # fmt: skip
        yield Attack(f"{method} {path}", method, path, b"{}" if method == "POST" else None)
    body, kind = form({}, [("file", "model.pt", b"weights")])
    yield Attack("replace the weights", "PUT", "/model/istn", body, kind)
    body = json.dumps({"labels": target.call}).encode()
    yield Attack("active learning with an expression", "POST", "/activelearning/random", body)
    yield Attack("a form where JSON is expected", "POST", "/train/istn", b"max_epochs=1", kind=FORM)


def all_attacks(target: Target) -> list[Attack]:
    kinds: tuple[Callable[[Target], Iterator[Attack]], ...] = (trainings, origins, registrations, datastores, others)
    return [attack for kind in kinds for attack in kind(target)]


# --- what they did ----------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The files below a folder but logs, with their sizes and times."""
    found = {}
    for file in folder.rglob("*"):
        if (
            file.suffix != ".log"
            and not set(IGNORED).intersection(file.relative_to(folder).parts)
            and not file.is_dir()
        ):
            state = file.lstat()
            found[str(file.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return found


def send(server: Server, attack: Attack) -> tuple[int, bytes]:
    """Status and body of an answer, with headers and a path as they are."""
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    try:
        headers = {"Content-Type": attack.kind} | attack.headers
        connection.request(attack.method, attack.path, attack.body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def harm(server: Server, target: Target, attack: Attack, before: dict[str, tuple[int, int]]) -> str:
    """What is wrong after an attack; nothing if it was refused and changed nothing."""
    status, body = send(server, attack)
    after = files_of(target.run)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    found = [] if status in attack.refused else [f"answered with {status}"]
    found += [f"files changed: {changed}"] if changed else []
    found += ["the answer names a folder"] if str(target.run).encode() in body else []
    return "; ".join([*found, body.decode(errors="replace")[:200]]) if found else ""
