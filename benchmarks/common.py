"""What the benchmarks share: code and machine that were measured, time and peak memory of calls, tables, files.

A result is a list of rows, one for each candidate and task: ``what``, ``candidate``, seconds (``median``,
``min``, ``max``, ``n``), ``peak_mb``, and ``error``, its largest absolute difference from what it must give, with the
``tolerance`` for that.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = "istn_monai"
SEED = 0
TOLERANCE = 1e-3  # voxels (fields), or of images in [0, 1]
SLOW = 10.0  # seconds that all repeats of a call may take, if it can be repeated more than twice
Row = dict[str, Any]


@dataclass
class Candidate:
    """One way to compute a result.

    Attributes:
        compute: the result from the parameters.
        parameters: what is differentiated.
        error: tells the result's largest absolute difference from what it must be.
    """

    compute: Callable[[], Tensor]
    parameters: list[Tensor]
    error: Callable[[], float]


def configs(*names: str) -> list[str]:
    """Config files of the bundle."""
    return [str(ROOT / "bundle" / "configs" / f"{name}.json") for name in names]


def commit(checkout: Path = ROOT) -> str:
    """The commit that is checked out, with "-dirty" where tracked files differ from it; "unknown" without git."""
    git = ["git", "-C", str(checkout)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
        return head + ("-dirty" if subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def code_hash() -> str:
    """Package, bundle and benchmarks in a few letters: names what was measured also where there is no git."""
    files = (f for folder in (OURS, "bundle/configs", "benchmarks") for f in (ROOT / folder).rglob("*.*"))
    files = (file for file in files if file.suffix in (".py", ".json") and RESULTS not in file.parents)
    contents = b"".join(file.read_bytes() for file in sorted(files))
    return hashlib.sha256(contents).hexdigest()[:12]


def version(package: str) -> str | None:
    """Of an installed package; None for one that is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def default_device() -> str:
    """The device that the bundle takes by itself."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def provenance(device: str, **settings: Any) -> Row:
    """What was measured, on what, and with which settings."""
    packages = {"torch": "torch", "monai": "monai", "deepali": "hf-deepali"}
    return {
        "commit": commit(),
        "code": code_hash(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {key: version(name) for key, name in packages.items()},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": SEED,
        **settings,
    }


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Products and convolutions on a GPU with 10 bits of mantissa, or with float32's 23."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = enabled
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def resident_mb(key: str) -> float:
    """``VmRSS`` or ``VmHWM`` (its high-water mark) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def peak_mb(call: Callable[[], object], device: str) -> float | None:
    """MiB by which memory rises at most during ``call``, its result included.

    On a GPU that of torch's allocator. On a CPU the high-water mark of the process' resident memory, which Linux lets
    one reset, after free memory was given back to it: so it holds what libraries allocate without torch, too. None
    where this is not possible.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = resident_mb("VmRSS")
    except OSError:
        call()
        return None
    call()
    return resident_mb("VmHWM") - before


def spread(values: Sequence[float]) -> Row:
    """Median, range and number."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of a call, until a GPU is done with it, and its result."""
    synchronise(device)
    start = time.perf_counter()
    result = call()
    synchronise(device)
    return time.perf_counter() - start, result


def measure(calls: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, Row]:
    """Seconds and peak memory of each call, by name.

    The calls take turns, so that whatever else the machine does hits all alike. Before that each is called twice, which
    warms it up and gives its memory; one that is slow is then repeated less often, at least twice.
    """
    peaks, counts = {}, {}
    for name, call in calls.items():
        call()
        duration, peaks[name] = timed(functools.partial(peak_mb, call, device), device)
        counts[name] = min(repeats, max(2, int(SLOW / duration)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn < counts[name]:
                seconds[name].append(timed(call, device)[0])
    return {name: spread(seconds[name]) | {"peak_mb": peaks[name]} for name in calls}


@torch.no_grad()
def largest_difference(result: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors, wherever they are; infinite if their shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    return (result.cpu().double() - expected.cpu().double()).abs().max().item()


def wrong(rows: Sequence[Row]) -> list[Row]:
    """The rows whose error is above their tolerance, or nan."""
    return [row for row in rows if row.get("tolerance") is not None and not row["error"] <= row["tolerance"]]


def must_agree(rows: Sequence[Row]) -> None:
    """SystemExit that names each row which is wrong."""
    lines = [
        f"{r['what']}, {r['candidate']}: off by {r['error']:.3g}, allowed {r['tolerance']:.3g}" for r in wrong(rows)
    ]
    if lines:
        raise SystemExit("wrong results:\n" + "\n".join(lines))


def line(row: Row) -> str:
    """A row for people."""
    text = f"{row['what']:56} {row['candidate']:24}"
    if "median" in row:
        text += f" {row['median']:9.4f} s ({row['min']:.4f} - {row['max']:.4f}, n={row['n']})"
    if row.get("peak_mb") is not None:
        text += f" {row['peak_mb']:8.1f} MiB"
    text += f"  {row['seconds_per_step']:.4f} s a step" if "seconds_per_step" in row else ""
    text += f"  error {row['error']:.1e}" if "error" in row else ""
    return text + (f"  not measured: {row['failed']}" if "failed" in row else "")


def random(shape: Sequence[int], device: str, seed: int = SEED) -> Tensor:
    """Normal numbers, the same on each device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def compare(what: str, candidates: Mapping[str, Candidate], repeats: int, device: str) -> list[Row]:
    """Rows of candidates that compute the same, forward alone, and forward and backward.

    Another's candidate that cannot be computed here (a lack of memory, say) has a row that says so.
    """

    def forward(candidate: Candidate) -> Tensor:
        with torch.no_grad():
            return candidate.compute()

    def both(candidate: Candidate) -> tuple[Tensor, ...]:
        return torch.autograd.grad(candidate.compute(), candidate.parameters, cotangent)

    cotangent = random(forward(candidates[OURS]).shape, device, seed=SEED + 9)
    rows: list[Row] = []
    agreements: dict[str, Row] = {}
    for name, candidate in candidates.items():
        try:
            agreements[name] = {"error": candidate.error(), "tolerance": TOLERANCE}
            both(candidate)
        except RuntimeError as error:
            if name == OURS:
                raise
            agreements.pop(name, None)
            rows.append({"what": what, "candidate": name, "failed": str(error).splitlines()[0]})
    for part, function in {"forward": forward, "forward+backward": both}.items():
        calls = {name: functools.partial(function, candidates[name]) for name in agreements}
        for name, times in measure(calls, repeats, device).items():
            rows.append({"what": f"{what}, {part}", "candidate": name, **times, **agreements[name]})
    print("\n".join(map(line, rows)), flush=True)
    return rows


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """``{what: {candidate: its median over ours}}`` of all tasks that have other candidates than ours."""
    ours = {row["what"]: row["median"] for row in rows if row["candidate"] == OURS and "median" in row}
    result: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["what"] in ours and row["candidate"] != OURS:
            result.setdefault(row["what"], {})[row["candidate"]] = row["median"] / ours[row["what"]]
    return result


def listed(names: str | Sequence[str]) -> list[str]:
    """Names from a command line, where Fire may have made a tuple of "a,b"."""
    return names.split(",") if isinstance(names, str) else list(names)


def write(content: Mapping[str, Any], file: str | Path) -> None:
    """JSON."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
