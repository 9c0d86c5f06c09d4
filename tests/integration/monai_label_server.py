"""A MONAI Label server in an environment of its own, and a client for it; see ``monai_label.py``."""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "hosts" / "monai_label"
REQUIREMENTS = APP / "requirements.txt"
SUFFIX = ".nii.gz"


def make_environment(folder: Path) -> Path:
    """The Python of an environment with the server and this checkout in it; what is complete is used again."""
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    complete, wanted = folder / "complete", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not (complete.is_file() and complete.read_text(encoding="utf-8") == wanted):
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        complete.write_text(wanted, encoding="utf-8")
    subprocess.run([*pip, "--force-reinstall", "--no-build-isolation", str(ROOT)], check=True)
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running server and a client for it."""

    process: subprocess.Popen
    url: str
    temporary: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urllib.parse.urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple:
        """Status, content type and body of an answer."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def infer(self, image: str = "", uploads: dict[str, Path] | None = None, session: str = "", **params: Any) -> Reply:
        """``POST /infer``, in one pass if ``params`` say nothing else."""
        params = {"refine_steps": 0} | params
        query = urllib.parse.urlencode({"image": image, "session_id": session, "output": "all"})
        body, kind = multipart({"params": json.dumps(params)}, uploads or {})
        return Reply.of(*self.request("POST", f"/infer/istn?{query}", body, kind))

    def memory(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclass
class Reply:
    """An answer to ``POST /infer``: JSON, and the image that came with it."""

    status: int
    params: dict[str, Any]
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    affine: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, status: int, kind: str, body: bytes, suffix: str = SUFFIX) -> Reply:
        if not kind.startswith("multipart"):
            return cls(status, json.loads(body) if kind.startswith("application/json") else {"text": body.decode()})
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts()
        params, image = (part.get_payload(decode=True) for part in parts)
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(image)
            file.flush()
            return cls(status, json.loads(params), *loaded(file.name))


def loaded(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of an image, and its affine, RAS mm."""
    if file.endswith(SUFFIX):
        image = nib.load(file)
        return np.asarray(image.dataobj), image.affine
    image = sitk.ReadImage(file)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS


def multipart(fields: dict[str, str], files: dict[str, Path]) -> tuple[bytes, str]:
    """A form with uploads, and its content type."""
    boundary, parts = uuid.uuid4().hex, []
    for name, value in fields.items():
        parts.append((f'name="{name}"', value.encode()))
    for name, file in files.items():
        parts.append((f'name="{name}"; filename="{file.name}"', file.read_bytes()))
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@contextlib.contextmanager
def serve(python: Path, app: Path, studies: Path, work: Path, *conf: str) -> Iterator[Server]:
    """A server on a free port of this machine, stopped at the end whatever happens."""
    temporary, log = work / "tmp", work / f"{app.name}.log"
    temporary.mkdir(exist_ok=True)
    port = free_port()
    start = app / "start.py" if (app / "start.py").is_file() else APP / "start.py"  # the stock app has none
    command = [str(python), str(start), str(studies), "--app", str(app)]
    for key, value in zip(conf[::2], conf[1::2], strict=True):
        command += ["--conf", key, value]
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
        "PYTHONPATH": "",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=work, start_new_session=True,
        )  # fmt: skip
    server = Server(process, f"http://127.0.0.1:{port}", temporary)
    try:
        wait_for(lambda: server.request("GET", "/info/")[0] == 200, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            if ready():
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start; its log ends with\n{log.read_text(encoding='utf-8')[-3000:]}")
