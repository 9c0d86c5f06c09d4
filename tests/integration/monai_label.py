"""The bundle on a real MONAI Label server: installs it, starts it, asks it for registrations, and stops it.

    python tests/integration/monai_label.py [--work FOLDER]

It runs where the project is installed; the server gets an environment of its own, made in FOLDER (used again if it is
complete; a temporary folder by default). Real data come from ISTN_DATA_DIR (default ../shared/data beside the
checkout); without them it says so and ends. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from label_attacks import Target, all_attacks, files_of, form, harm
from monai_label_server import ROOT, SUFFIX, Reply, Server, make_environment, multipart, serve
from slicer_plugin import SlicerPlugin

DATA = Path(os.environ.get("ISTN_DATA_DIR", ROOT.parent / "shared" / "data")) / "hippocampus"
SHIPPED = ROOT / "bundle" / "models" / "model.pt"
PAIRS, STEPS, REQUESTS = 5, 25, 20
VIEWER = "http://viewer.example"  # an origin that is allowed
MIN_ATTACKS, MAX_MB = 60, 4  # requests; the server's limit of uploads
#: mean over pairs, refined; MB of resident memory from the first to the last quarter of the requests
MIN_DICE, MAX_GROWTH = 0.70, 45.0


def first_pairs() -> list[tuple[str, str]]:
    """Ids of the first test pairs, moving and fixed."""
    pairs = json.loads((DATA / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:PAIRS]
    keys = ("moving_image", "fixed_image")
    name = {key: [Path(pair[key]).name.removesuffix(SUFFIX) for pair in pairs] for key in keys}
    return list(zip(name["moving_image"], name["fixed_image"], strict=True))


def make_studies(folder: Path, pairs: list[tuple[str, str]], final: int = 4) -> None:
    """A datastore of the pairs' images: the labels of the first few are final, the others original."""
    for number, name in enumerate(sorted({name for pair in pairs for name in pair})):
        labels = folder / "labels" / ("final" if number < final else "original")
        labels.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "imagesTr" / (name + SUFFIX), folder)
        shutil.copy(DATA / "labelsTr" / (name + SUFFIX), labels)
    secret = folder.parent / "secret"
    secret.mkdir()
    shutil.copy(DATA / "imagesTr" / (pairs[0][0] + SUFFIX), secret / ("outside" + SUFFIX))
    (folder / ("link" + SUFFIX)).symlink_to(secret / ("outside" + SUFFIX))


def dice(result: np.ndarray, name: str) -> float:
    """Mean Dice of both labels against a case's own."""
    truth = np.asarray(nib.load(DATA / "labelsTr" / (name + SUFFIX)).dataobj)
    if result.shape != truth.shape:  # of a request that failed
        return 0.0
    scores = [2 * ((result == k) & (truth == k)).sum() / ((result == k).sum() + (truth == k).sum()) for k in (1, 2)]
    return float(np.mean(scores))


def on_grid_of(reply: Reply, name: str) -> bool:
    """Whether an answer has the shape and affine of a case's image."""
    image = nib.load(DATA / "imagesTr" / (name + SUFFIX))
    return reply.values.shape == image.shape and np.allclose(reply.affine, image.affine, atol=1e-4)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- checks -----------------------------------------------------------------------------------------------------------


class Checks:
    """Says of each check whether it passed, and counts."""

    passed = failed = 0

    def __call__(self, passed: Any, text: str) -> None:
        self.passed += bool(passed)
        self.failed += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {text}", flush=True)


def check_pairs(server: Server, check: Checks, pairs: list[tuple[str, str]]) -> None:
    """Label propagation with datastore ids, in one pass and refined."""
    scores: dict[int, list[float]] = {0: [], STEPS: []}
    for moving, fixed in pairs:
        for steps, found in scores.items():
            reply = server.infer(fixed, moving_image=moving, refine_steps=steps)
            if reply.status != 200:
                check(False, f"{moving} to {fixed}, {steps} steps: {reply.status} {reply.params}")
                continue
            found.append(dice(reply.values, fixed))
            whole = reply.values.dtype == np.uint8 and set(np.unique(reply.values)) == {0, 1, 2}
            start, end = (reply.params[f"objective_{when}"] for when in ("start", "end"))
            named = {"seconds", "folding", "displacement_mm", "warnings"} <= set(reply.params)
            better = end < start if steps else end == start
            check(
                on_grid_of(reply, fixed) and whole and named and better,
                f"{moving} to {fixed}, {steps} steps: on the fixed grid, Dice {found[-1]:.3f}, objective "
                f"{start:.2e} to {end:.2e}, {reply.params['seconds']:.1f} s, "
                f"folding {reply.params['folding']:.4f}, warnings {reply.params['warnings']}",
            )
    one_pass, refined = (float(np.mean(found)) for found in scores.values())
    check(refined >= MIN_DICE, f"mean Dice of {PAIRS} pairs: one pass {one_pass:.3f}, refined {refined:.3f}")
    check(refined > one_pass, "the refinement raises the mean Dice")


def check_same_as_command_line(server: Server, check: Checks, python: Path, work: Path, pair: tuple[str, str]) -> None:
    """The server's answer is what ``istn-monai register`` writes."""
    moving, fixed = pair
    output = work / "registration"
    files = [str(DATA / folder / (name + SUFFIX)) for folder, name in
             (("imagesTr", moving), ("imagesTr", fixed), ("labelsTr", moving))]  # fmt: skip
    command = [str(python), "-m", "istn_monai", "register", *files[:2], "--moving_label", files[2]]
    environment = os.environ | {"PYTHONPATH": ""}
    subprocess.run(
        [*command, "--output_dir", str(output), "--refine_steps", str(STEPS), "--qa", "False"],
        check=True, cwd=work, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    expected = np.asarray(nib.load(output / f"warped_label{SUFFIX}").dataobj)
    got = server.infer(fixed, moving_image=moving, refine_steps=STEPS).values
    different = float((got != expected).mean())
    check(different < 1e-3, f"the same label map as the command line's, but for {different:.5%} of the voxels")


def check_sources(server: Server, check: Checks, pair: tuple[str, str]) -> None:
    """Moving and fixed images from uploads and from a session."""
    moving, fixed = pair
    files = {name: DATA / "imagesTr" / (name + SUFFIX) for name in pair}
    label = DATA / "labelsTr" / (moving + SUFFIX)
    expected = server.infer(fixed, moving_image=moving).values

    def same(reply: Reply) -> bool:
        return reply.status == 200 and on_grid_of(reply, fixed) and np.array_equal(reply.values, expected)

    reply = server.infer(fixed, {"label": label}, moving_image=moving)
    check(same(reply) and reply.params["moving_label"] == "upload", "the moving image by its id, its label uploaded")
    reply = server.infer(fixed, {"label": files[moving]}, moving_label=moving)
    check(same(reply) and reply.params["moving_image"] == "upload", "the moving image uploaded, its label by its id")
    check(same(server.infer("", {"file": files[fixed]}, moving_image=moving)), "the fixed image uploaded")
    body, kind = multipart({}, {"files": files[fixed]})
    session = json.loads(server.request("PUT", "/session/", body, kind)[2])["session_id"]
    check(same(server.infer(session=session, moving_image=moving)), "the fixed image in a session")
    reply = server.infer("", {"file": files[fixed], "label": files[moving]})
    warned = reply.status == 200 and "no label" in " ".join(reply.params["warnings"])
    image = nib.load(files[moving]).get_fdata()
    plausible = reply.values.dtype == np.float32 and reply.values.max() <= image.max() and reply.values.std() > 0
    check(
        on_grid_of(reply, fixed) and warned and plausible,
        "both images uploaded, no label: the warped image on the fixed grid, with a warning",
    )


def check_errors(server: Server, check: Checks, pair: tuple[str, str]) -> None:
    """Requests that cannot be served: a status, a reason, and a server that lives on."""
    moving, fixed = pair
    outside = str(Path(server.temporary).parent / "secret" / ("outside" + SUFFIX))
    cases: list[tuple[int, str, str, dict[str, Any]]] = [
        (400, "moving_image is missing", fixed, {}),
        (404, "no image 'nobody'", fixed, {"moving_image": "nobody"}),
        (404, "no label 'nobody'", fixed, {"moving_image": moving, "moving_label": "nobody"}),
        (404, "no image with this id", "nobody", {"moving_image": moving}),
        (403, "paths are not allowed", fixed, {"moving_image": outside}),
        (403, "paths are not allowed", fixed, {"moving_image": "../secret/outside"}),
        (403, "leads out of the studies folder", fixed, {"moving_image": "link"}),
        (403, "paths are not allowed", fixed, {"moving_image": moving, "moving_label": outside}),
        (403, "label must be an upload", fixed, {"label": outside}),
        (403, "image must be an id", outside, {"moving_image": moving}),
        (403, "model_filename", fixed, {"moving_image": moving, "model_filename": "../../model.pt"}),
        (400, "model_filename", fixed, {"moving_image": moving, "model_filename": "any_contrast.pt"}),
        (403, "label_tag", fixed, {"moving_image": moving, "save_label": True, "label_tag": "../../secret"}),
        (400, "refine_steps must be a whole number", fixed, {"moving_image": moving, "refine_steps": -1}),
        (400, "refine_steps must be a whole number", fixed, {"moving_image": moving, "refine_steps": 10**9}),
        (400, "an expression", fixed, {"moving_image": moving, "refine_steps": "$__import__('os').getpid()"}),
        (400, "no objects", fixed, {"moving_image": moving, "refine_steps": {"_target_": "os.getpid"}}),
        (400, "device must be", fixed, {"moving_image": moving, "device": "toaster"}),
    ]
    for status, text, image, params in cases:
        reply = server.infer(image, **params)
        detail = str(reply.params.get("detail", reply.params))
        check(reply.status == status and text in detail, f"{reply.status} {detail}")
    reply = server.infer(fixed, moving_image=moving, fixed_image=outside, fixed_label=outside, theta=outside)
    check(np.array_equal(reply.values, server.infer(fixed, moving_image=moving).values), "other keys are not read")
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / ("broken" + SUFFIX)
        broken.write_bytes(b"not an image")
        reply = server.infer(fixed, {"label": broken})
    status, _, body = server.request("POST", f"/infer/istn?image={fixed}", kind="")
    check(status == 400 and b"moving_image is missing" in body, f"without a form: {status}")
    check(reply.status == 400 and "cannot read" in reply.params["detail"], f"{reply.status} {reply.params['detail']}")
    check(server.infer(fixed, moving_image=moving).status == 200, "the server lives on")


def check_repeated(server: Server, check: Checks, pair: tuple[str, str]) -> None:
    """Many requests in a row, with and without refinement, and two at once: the same answers, and no growing memory."""
    moving, fixed = pair
    steps = [0, 10]
    first = {number: server.infer(fixed, moving_image=moving, refine_steps=number) for number in steps}
    check(not np.array_equal(first[0].values, first[10].values), "refinement changes the answer")
    left, memory, replies = set(server.temporary.iterdir()), [], []
    begin = time.perf_counter()
    for number in steps * (REQUESTS // 2):
        replies.append((number, server.infer(fixed, moving_image=moving, refine_steps=number)))
        memory.append(server.memory())
    seconds, quarter = time.perf_counter() - begin, REQUESTS // 4
    # what an allocator keeps of one request or gives back comes and goes, also most of the time; what leaks stays, and
    # the least that is in use grows with it
    before, after = min(memory[:quarter]), min(memory[-quarter:])

    def same(number: int, reply: Reply) -> bool:
        objective = reply.params.get("objective_end")
        return np.array_equal(reply.values, first[number].values) and objective == first[number].params["objective_end"]

    check(all(same(*reply) for reply in replies), f"{REQUESTS} requests in a row: the same answers, {seconds:.0f} s")
    series = " ".join(f"{mb:.0f}" for mb in memory)
    check(after - before < MAX_GROWTH, f"memory in {REQUESTS} requests: {before:.0f} to {after:.0f} MB ({series})")
    with ThreadPoolExecutor(4) as pool:
        numbers = steps * 2
        both = list(pool.map(lambda n: server.infer(fixed, moving_image=moving, refine_steps=n), numbers))
    check(all(map(same, numbers, both)), "4 requests at once, 0 and 10 steps: the same answers")
    deadline = time.perf_counter() + 10  # the host removes files after it has answered
    while not set(server.temporary.iterdir()) <= left and time.perf_counter() < deadline:
        time.sleep(0.1)
    check(set(server.temporary.iterdir()) <= left, "no temporary files are left behind")


def check_attacks(server: Server, check: Checks, target: Target) -> None:
    """Hostile requests: all are refused, and nothing is left of them; see ``label_attacks.py``."""
    attacks = all_attacks(target)
    before = files_of(target.run)
    for attack in attacks:
        wrong = harm(server, target, attack, before)
        if wrong:
            check(False, f"{attack.name}: {wrong}")
            before = files_of(target.run)
    check(len(attacks) >= MIN_ATTACKS, f"{len(attacks)} hostile requests were sent")
    check(files_of(target.run) == before and not target.canary.exists(), "nothing ran, and no file was left or changed")
    check(server.request("GET", "/train/")[0] == 404, "no training was started")
    check(server.request("GET", "/batch/infer")[0] == 404, "no batch was started")
    check(server.infer(target.fixed, moving_image=target.moving).status == 200, "the server lives on")


def check_limits(server: Server, check: Checks, target: Target) -> None:
    """Requests that are too large, by what they say and by what they are, and one that is not finished."""
    before = files_of(target.run)
    size = (MAX_MB + 1) << 20
    body, kind = form({}, [("file", f"a{SUFFIX}", bytes(size))])
    path, chunked = "/datastore/?image=large", {"Content-Type": kind, "Transfer-Encoding": "chunked"}
    announced = {"Content-Type": kind, "Content-Length": str(5 << 30)}
    for name, headers, parts in (("announced", announced, []), ("in chunks", chunked, [body[:size], body[size:]])):
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        connection.putrequest("PUT", path)
        for header in headers.items():
            connection.putheader(*header)
        connection.endheaders()
        with contextlib.suppress(ConnectionError):  # the server need not read on
            for part in parts:
                connection.send(b"%x\r\n%b\r\n" % (len(part), part))
        answer = connection.getresponse()
        detail = json.loads(answer.read())["detail"]
        connection.close()
        check(answer.status == 413, f"an upload that is too large, {name}: {answer.status} {detail}")
    with socket.create_connection(server.address) as connection:
        lines = [
            f"PUT {path} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body) // 2}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[: 1 << 20])
        time.sleep(0.5)
    check(server.request("GET", "/info/")[0] == 200, "the server lives on after an upload that broke off")
    request = urllib.request.Request(f"{server.url}/info/", headers={"Origin": VIEWER})
    with urllib.request.urlopen(request) as answer:
        check(
            answer.headers["Access-Control-Allow-Origin"] == VIEWER, "a page of an origin that is allowed is answered"
        )
    check(files_of(target.run) == before, "no file is left of them")


def check_datastore(server: Server, check: Checks, target: Target) -> None:
    """What clients may do with the datastore: add, label, describe, read, and remove."""
    image, label = (DATA / folder / (target.fixed + SUFFIX) for folder in ("imagesTr", "labelsTr"))

    def put(path: str, fields: dict[str, Any], uploads: dict[str, Path]) -> tuple[int, str]:
        body, kind = multipart({key: json.dumps(value) for key, value in fields.items()}, uploads)
        status, _, answer = server.request("PUT", path, body, kind)
        return status, answer.decode()

    check(put("/datastore/?image=new", {"params": {"client_id": "a"}}, {"file": image})[0] == 200, "an image is added")
    status, detail = put("/datastore/?image=new", {}, {"file": label})
    same = server.request("GET", "/datastore/image?image=new")[2] == image.read_bytes()
    check(status == 409 and same, f"an image that is there is not replaced: {status} {detail}")
    info = {"params": {"label_info": [{"name": "anterior", "idx": 1}], "client_id": "a"}}
    status, detail = put("/datastore/label?image=new&tag=final", info, {"label": label})
    same = server.request("GET", "/datastore/label?label=new&tag=final")[2] == label.read_bytes()
    check(status == 200 and same, f"a label is saved: {status} {detail}")
    other = target.run / "label.nrrd"
    other.write_bytes(b"NRRD0004\ntype: uchar\ndimension: 1\nsizes: 1\nencoding: raw\n\n1")
    put("/datastore/label?image=new&tag=final", {}, {"label": other})
    found = sorted(file.name for file in (target.run / "studies" / "labels" / "final").glob("new.*"))
    check(found == ["new.nrrd"], f"a label of another format takes its place: {found}")
    check(
        put("/datastore/image/info?image=new", {"info": {"comment": "motion"}}, {})[0] == 200, "an image is described"
    )
    objects = json.loads(server.request("GET", "/datastore/?output=all")[2])["objects"]
    check(objects["new"]["image"]["info"]["comment"] == "motion", "and the description is there")
    answers = [server.request("POST", "/activelearning/random", b'{"client_id": "a"}') for _ in range(3)]
    answers += [server.request("GET", path) for path in ("/datastore/image/info?image=new", "/datastore/?output=all")]
    body, kind = multipart({}, {"files": image})
    answers.append(server.request("PUT", "/session/", body, kind))
    session = json.loads(answers[-1][2])["session_id"]
    answers += [server.request(method, f"/session/{session}") for method in ("GET", "DELETE")]
    answers.append(server.request("GET", "/info/"))
    told = any(str(target.run).encode() in answer[2] for answer in answers)
    check(all(answer[0] == 200 for answer in answers) and not told, "no answer names a folder of the server")
    statuses = [server.request("DELETE", f"/datastore/{path}")[0] for path in ("label?id=new&tag=final", "?id=new")]
    check(statuses == [200, 200], f"an image and its label are removed: {statuses}")
    wait(lambda: "new" not in json.loads(server.request("GET", "/datastore/?output=all")[2])["objects"])


def check_slicer(server: Server, check: Checks, target: Target) -> None:
    """What 3D Slicer's module sends for each of its clicks, in the order in which a user comes to them."""
    slicer, folder = SlicerPlugin(server), target.run / "viewer"
    folder.mkdir()
    slicer.fetch_info()
    cases, steps = (slicer.table()[key] for key in ("moving_image", "refine_steps"))
    final = sorted(file.name.removesuffix(SUFFIX) for file in (target.run / "studies/labels/final").glob(f"*{SUFFIX}"))
    check(cases[: len(final)] == final and "link" not in cases, f"the options offer the labeled cases first: {cases}")
    check(steps == STEPS, f"a run refines, in {steps} steps")
    files = slicer.table()["model_filename"]
    check(files == ["model.pt"], f"the options offer the weights that fit the served network alone: {files}")
    check(str(target.run) not in json.dumps(slicer.info), "the options name no folder of the server")
    image, content = slicer.next_sample()
    check(image not in final and len(content) > 1000, f"the next sample has no final label: {image}")
    reply = slicer.run(image)
    good = reply.status == 200 and reply.values.shape == nib.load(DATA / "imagesTr" / (image + SUFFIX)).shape
    good = good and set(np.unique(reply.values)) == {0, 1, 2}
    check(good, f"a run with the first entry of each list: {reply.status}")
    score, qa = dice(reply.values, image), reply.params.get("qa", reply.params)
    check(score > MIN_DICE, f"its labels: Dice {score:.3f}")
    check(qa["status"] in ("green", "amber") and len(qa["skipped"]) < 4, f"its light: {qa}")
    other = slicer.run(image, moving_image=cases[1])
    different = other.status == 200 and other.params["moving_image"] == cases[1] + SUFFIX
    check(different and not np.array_equal(other.values, reply.values), "a run with another entry")
    reply = slicer.run(cases[0])
    detail = reply.params.get("detail", "")
    check(reply.status == 400 and "choose another" in detail, f"a case is not registered to itself: {detail}")
    file = folder / f"tmp1_2{SUFFIX}"
    shutil.copy(DATA / "imagesTr" / (target.fixed + SUFFIX), file)
    status, answer = slicer.upload_volume(file, "MRHead 1")
    slicer.fetch_info()
    check(status == 200 and "MRHead 1" in slicer.table()["moving_image"], f"a volume is uploaded: {status} {answer}")
    reply = slicer.run("MRHead 1")
    check(reply.status == 200 and dice(reply.values, target.fixed) > MIN_DICE, "and registered")
    reply = slicer.run(image, moving_image="MRHead 1")
    check(reply.status == 400, f"as the moving image, it has no labels: {reply.status} {reply.params['detail']}")
    shutil.copy(DATA / "labelsTr" / (target.fixed + SUFFIX), file)
    status, answer = slicer.submit_label("MRHead 1", file)
    slicer.fetch_info()
    first = slicer.table()["moving_image"].index("MRHead 1") <= len(final)
    check(status == 200 and first, f"its label is submitted, and it is among the first: {status} {answer}")
    for path in ("label?id=MRHead%201&tag=final", "?id=MRHead%201"):
        server.request("DELETE", f"/datastore/{path}")


def check_batch(server: Server, check: Checks, target: Target) -> None:
    """The atlas's labels for images of the datastore, in the background; they do not take the place of final ones."""
    body = json.dumps({"moving_image": target.moving, "refine_steps": 0, "max_batch_size": 1}).encode()
    status = server.request("POST", "/batch/infer/istn?images=unlabeled", body)[0]
    task = wait(lambda: finished(server, "/batch/infer"))
    check(status == 200 and task["status"] == "DONE", f"a batch of one image: {status}, {task['status']}")
    check(str(target.run) not in json.dumps(task), "its log names no folder of the server")


def finished(server: Server, path: str) -> dict[str, Any] | None:
    """A task of the server, once it has ended."""
    task = json.loads(server.request("GET", path)[2])
    return None if task["status"] in ("SUBMITTED", "RUNNING") else task


def wait(value: Callable[[], Any], seconds: float = 400) -> Any:
    """The first value that is true of one that is asked for again and again; the last one after a while."""
    end = time.perf_counter() + seconds
    while not (found := value()) and time.perf_counter() < end:
        time.sleep(0.5)
    return found


def check_training(server: Server, check: Checks, app: Path, pair: tuple[str, str], log: Path) -> None:
    """Training on the datastore's labels in the background, and registration meanwhile and afterwards."""
    moving, fixed = pair
    models = app / "model" / "istn" / "models"
    settings = {"max_epochs": 1, "val_split": 0.25, "device": "cpu"}
    status, _, body = server.request("POST", "/train/istn", json.dumps(settings).encode())
    check(status == 200, f"training starts: {status}")
    begin = time.perf_counter()
    answers, seconds = [], []
    while not finished(server, "/train/") and len(answers) < 3:
        asked = time.perf_counter()
        answers.append(server.infer(fixed, moving_image=moving).status)
        seconds.append(time.perf_counter() - asked)
    check(answers and set(answers) == {200}, f"registrations while the network is trained: {np.round(seconds, 1)} s")
    task = wait(lambda: finished(server, "/train/"))
    check(str(app.parent) not in json.dumps(task), "the task's log names no folder of the server")
    lines = log.read_text(encoding="utf-8")
    seconds = time.perf_counter() - begin
    check(task["status"] == "DONE", f"one epoch on 4 labeled images: {task['status']}, {seconds:.0f} s")
    check("training: 6 pairs" in lines or "preparing 6 pairs" in lines, "6 pairs of 3 images")
    check(digest(models / "original.pt") == digest(SHIPPED), "the first network is kept")
    check(digest(models / "model.pt") != digest(SHIPPED), "the trained network is served")
    config = json.loads(server.request("GET", "/info/")[2])["models"]["istn"]["config"]
    check(config["model_filename"] == ["model.pt", "original.pt"], f"and the first: {config['model_filename']}")
    check(not list(app.parent.rglob("synthetic*")), "no synthetic data were made")
    reply = server.infer(fixed, moving_image=moving, refine_steps=STEPS)
    check(reply.status == 200 and dice(reply.values, fixed) > MIN_DICE, f"Dice {dice(reply.values, fixed):.3f} with it")
    status, _, body = server.request("POST", "/train/istn?run_sync=true", b'{"max_epochs": "$1"}')
    check(status == 400, f"{status} {json.loads(body).get('detail')}")


def check_stock_app(check: Checks, python: Path, studies: Path, work: Path, pair: tuple[str, str]) -> None:
    """The stock ``monaibundle`` app, with an atlas configured in the bundle."""
    moving, fixed = pair
    source = next(python.parent.parent.glob("monailabel/sample-apps/monaibundle"))
    app = work / "monaibundle"
    shutil.copytree(source, app)
    bundle = app / "model" / "istn"
    shutil.copytree(ROOT / "bundle", bundle)
    for key, folder in (("image", "imagesTr"), ("label", "labelsTr")):
        shutil.copy(DATA / folder / (moving + SUFFIX), bundle / f"atlas_{key}{SUFFIX}")
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    atlas = {f"moving_{key}": f"atlas_{key}{SUFFIX}" for key in ("image", "label")}
    config.write_text(json.dumps(content | atlas), encoding="utf-8")
    conf = ("models", "istn", "zoo_source", "ngc", "sam2", "false")  # else it asks GitHub for models at its start
    with serve(python, app, studies, work, *conf) as server:
        by_id = server.infer(fixed, moving_image=moving, refine_steps=STEPS)
        by_atlas = server.infer(fixed, refine_steps=STEPS)
        good = by_id.status == by_atlas.status == 200 and on_grid_of(by_id, fixed)
        check(good and dice(by_id.values, fixed) > MIN_DICE, "the stock app: moving image by its id")
        check(good and np.array_equal(by_id.values, by_atlas.values), "the stock app: the atlas of the bundle")
        refused = server.infer(fixed, moving_image="../secret/outside")
        check(refused.status == 500, "the stock app refuses a path, with a bare 500")
        check(server.infer(fixed).status == 200, "the stock app lives on")


def run(work: Path) -> int:
    """All checks; the number of those that failed."""
    begin = time.perf_counter()
    python = make_environment(work / "environment")
    installed = time.perf_counter()
    print(f"environment with MONAI Label and this checkout: {installed - begin:.0f} s", flush=True)
    check, pairs = Checks(), first_pairs()
    run_folder = Path(tempfile.mkdtemp(prefix="run_", dir=work))
    try:
        studies, app = run_folder / "studies", run_folder / "istn_app"
        make_studies(studies, pairs)
        made = shutil.ignore_patterns("model", "logs", "bin", "lib")  # by a server that someone started in place
        shutil.copytree(ROOT / "hosts" / "monai_label", app, ignore=made)
        before = digest(SHIPPED)
        target = Target(run_folder, *pairs[0])
        conf = ("max_upload_mb", str(MAX_MB), "cors_origins", VIEWER)
        with serve(python, app, studies, run_folder, *conf) as server:
            print(f"server with our app started: {time.perf_counter() - installed:.0f} s", flush=True)
            check_pairs(server, check, pairs)
            check_same_as_command_line(server, check, python, run_folder, pairs[0])
            check_sources(server, check, pairs[0])
            check_errors(server, check, pairs[0])
            check_attacks(server, check, target)
            check_limits(server, check, target)
            check_datastore(server, check, target)
            check_slicer(server, check, target)
            check_batch(server, check, target)
            check_repeated(server, check, pairs[0])
            check_training(server, check, app, pairs[0], run_folder / f"{app.name}.log")
        check_stock_app(check, python, studies, run_folder, pairs[0])
        installed_model = next((work / "environment").glob("lib/*/site-packages/istn_monai/bundle/models/model.pt"))
        check(before == digest(SHIPPED) == digest(installed_model), "the shipped network is as it was")
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)
    print(f"MONAI Label, {time.perf_counter() - begin:.0f} s")
    print(f"checks: {check.passed} passed, {check.failed} failed", flush=True)
    return check.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the environment; used again if it is complete")
    work = parser.parse_args().work
    if not DATA.is_dir():
        print(f"skipped: no data in {DATA}; set ISTN_DATA_DIR")
        return 0
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        return min(run(work.resolve()), 1)
    with tempfile.TemporaryDirectory() as folder:
        return min(run(Path(folder).resolve()), 1)


if __name__ == "__main__":
    sys.exit(main())
