"""What the MONAI Label app lets through of a request; the same with a real server: tests/integration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hosts" / "monai_label"))
from request_checks import check_inline, without_paths  # noqa: E402
from requests_allowed import all_routes, find_route  # noqa: E402

from istn_monai.workflow.host_requests import RequestError  # noqa: E402

ROUTES = all_routes(["cpu", "cuda:0"], lambda: ["model.pt", "original.pt"])
CALL = "$__import__('os').system('touch canary')"
SESSION = "123e4567-e89b-12d3-a456-426614174000"


def send(method: str, url: str, body: Any = None, form: Any = None, uploads: Any = ()) -> None:
    """What the guard does with a request."""
    address = urlsplit(url)
    route = find_route(ROUTES, method, address.path)
    route.check_query(parse_qsl(address.query, keep_blank_values=True))
    if route.body is not None:
        route.check_body((body if isinstance(body, str) else json.dumps(body or {})).encode())
    fields = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (form or {}).items()}
    route.check_form(list(fields.items()), uploads)


def infer(**params: Any) -> None:
    """A registration with parameters."""
    send("POST", "/infer/istn?image=case_01&session_id=&output=all", form={"params": params})


@pytest.mark.parametrize(
    "method, url, options",
    [
        ("POST", "/train/istn", {"body": {"max_epochs": 5, "val_split": 0.2, "device": "cpu", "pretrained": True}}),
        ("POST", "/train/istn?enqueue=true&run_sync=false", {"body": {"client_id": "user-xyz"}}),
        ("POST", "/train/", {"body": {"istn": {"max_epochs": 5}}}),
        ("GET", "/train/?all=true&check_if_running=true", {}),
        ("POST", "/batch/infer/istn?images=unlabeled", {"body": {"moving_image": "a", "refine_steps": 10}}),
        ("POST", "/activelearning/random", {"body": {"client_id": "user-xyz"}}),
        ("PUT", "/session/?expiry=60&uncompress=false", {"uploads": [("files", "1.2.840.113"), ("files", "IM-2.dcm")]}),
        ("PUT", "/session/", {"uploads": [("files", "tmp1.nii.gz")], "form": {"client_id": "user-xyz"}}),
        ("DELETE", f"/session/{SESSION}", {}),
        ("PUT", "/datastore/?image=MRHead%201", {"uploads": [("file", "MRHead 1.nii.gz")], "form": {"params": {}}}),
        (
            "PUT",
            "/datastore/label?image=a&tag=final",
            {"form": {"params": {"label_info": [{"name": "left", "idx": 1}]}}, "uploads": [("label", "a.nrrd")]},
        ),
        (  # as 3D Slicer's "Submit Label" sends it, with a path of the viewer's machine
            "PUT",
            "/datastore/label?image=MRHead+1",
            {
                "form": {"params": {"label_info": [{"name": "left", "idx": 1}], "model": "istn", "client_id": "a-b"}},
                "uploads": [("label", "/tmp/slicer-monai-label/tmp1_2.nii.gz")],
            },
        ),
        (  # and "Upload Volume"
            "PUT",
            "/datastore/?image=MRHead+1",
            {
                "uploads": [("file", "/Users/me/Library (1)/Temp/tmp1_2.nii.gz")],
                "form": {"params": {"client_id": "user-xyz"}},
            },
        ),
        ("PUT", "/datastore/image/info?image=a", {"form": {"info": {"comment": "motion"}}}),
        ("GET", "/datastore/label?label=a&tag=original", {}),
        ("GET", "/info", {}),
    ],
)
def test_what_clients_send_is_let_through(method, url, options):
    send(method, url, **options)


def test_registrations_of_clients_are_let_through():
    infer()
    infer(moving_image="case_02", moving_label="case_03", refine_steps=50, device="cuda:0")
    infer(moving_image="", model_filename="model.pt", result_extension=".nrrd", result_dtype="uint8")  # 3D Slicer's
    infer(save_label=True, label_tag="original", result_compress=False, client_id="user-xyz", moving_image=None)
    infer(fixed_image="is never read", theta=[1])
    infer(result_extension=".nrrd", result_dtype="uint8", result_compress=False, restore_label_idx=False)  # OHIF's


@pytest.mark.parametrize(
    "key, value",
    [
        ("force_multi_gpu", True), ("multi_gpu", True), ("gpus", "0"), ("gpus", "all"), ("run_id", "run"),
        ("run_id", f"--initialize={CALL}"), ("tracking", "mlflow"), ("tracking", "/tmp/sessions/1/a.json"),
        ("tracking_uri", "http://a"), ("tracking_experiment_name", "a"), ("tracking_run_name", "a"),
        ("bundle_path", "/tmp"), ("local_rank", 1), ("train#trainer#max_epochs", 1), ("device", CALL),
        ("device", "meta"), ("device", ["cpu"]), ("max_epochs", 0), ("max_epochs", "$1"), ("max_epochs", True),
        ("max_epochs", 1.5), ("max_epochs", 10**9), ("max_epochs", {"_target_": "os.getpid"}), ("val_split", -1),
        ("val_split", 1), ("val_split", "0.2"), ("pretrained", "yes"), ("pretrained", 1), ("model_filename", "../a.pt"),
        ("model_filename", ["model.pt"]), ("client_id", "a\nb"), ("client_id", "%a"), ("_requires_", CALL),
        ("istn", {"gpus": "0"}), ("model", "istn"), ("name", "a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", ["/train/istn", "/train/"])
def test_training_takes_nothing_else(url, key, value):
    with pytest.raises(RequestError):
        send("POST", url, {key: value})


def test_unknown_keys_of_a_training_are_named_with_those_that_are_allowed():
    with pytest.raises(RequestError, match="'gpus' is not allowed .* allowed: max_epochs, val_split, pretrained"):
        send("POST", "/train/istn", {"gpus": "0"})


@pytest.mark.parametrize(
    "params",
    [
        {"refine_step": 50}, {"refine_steps": CALL}, {"refine_steps": {"_target_": "os.getpid"}}, {"refine_steps": -1},
        {"refine_steps": float("nan")}, {"moving_image": "../a"}, {"moving_image": "a/b"}, {"moving_image": "@device"},
        {"moving_image": "%/etc/passwd"}, {"moving_image": ["a"]}, {"moving_image": {"_requires_": CALL}},
        {"moving_label": ".."}, {"image": "/etc/passwd"}, {"label": "/etc/passwd"}, {"session": {"image": "/a"}},
        {"model": "other"}, {"model_filename": "/tmp/a.pt"}, {"result_extension": "/../../a.nii.gz"},
        {"result_extension": ".py"}, {"result_extension": ".png"}, {"result_dtype": "object"},
        {"result_write_to_file": False},
        {"label_tag": "final"}, {"label_tag": "../final"}, {"label_tag": "a::b"}, {"logging": "debug"},
        {"skip_writer": True}, {"restore_label_idx": True}, {"restore_label_idx": CALL},
        {"fixed_image": {"_target_": "os.getpid"}}, {"theta": [[CALL]]},
    ],
)  # fmt: skip
def test_registrations_take_nothing_else(params):
    with pytest.raises(RequestError):
        infer(**params)


@pytest.mark.parametrize(
    "body", ["[]", "{", "1", '"a"', "{'a': 1}", "[" * 100_000, '{"max_epochs": ' + "9" * 5000 + "}"]
)
def test_only_json_objects_are_read(body):
    with pytest.raises(RequestError, match="must be a JSON object"):
        send("POST", "/train/istn", body)


@pytest.mark.parametrize(
    "method, url, options, status",
    [
        ("PUT", "/datastore/?image=../app/model/istn/configs/train", {"uploads": [("file", "train.json")]}, 403),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "train.json")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "../a.nii.gz")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "/tmp/../a.nii.gz")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "/tmp/a.py")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "/tmp/a.$b.mha")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "/tmp/")]}, 400),
        ("PUT", "/session/", {"uploads": [("files", "/tmp/a.nii.gz")]}, 400),
        ("PUT", "/datastore/label?image=a", {"form": {"params": {"model": "../other"}}}, 403),
        ("PUT", "/datastore/?image=a", {"form": {"params": {"model": "istn"}}}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "a.mhd")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "a.$b.mha")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("file", "a.b::c.mha")]}, 400),
        ("PUT", "/datastore/?image=a", {"uploads": [("params", "a.nii.gz")]}, 400),
        ("PUT", "/datastore/?image=a", {"form": {"params": {"strategy": {}}}}, 400),
        ("PUT", "/datastore/?image=a%23b", {}, 400),
        ("PUT", "/datastore/?image=a::b", {}, 400),
        ("PUT", "/datastore/?image=a%0Ab", {}, 403),
        ("PUT", "/datastore/?image=$a", {}, 400),
        ("PUT", "/datastore/?image=a.nii.gz", {}, 400),
        ("PUT", "/datastore/?image=a&image=b", {}, 400),
        ("PUT", "/datastore/label?image=..&tag=final", {}, 403),
        ("PUT", "/datastore/label?image=a&tag=../..", {}, 403),
        ("PUT", "/datastore/image/info?image=a", {"form": {"info": {"path": "/etc"}}}, 400),
        ("GET", "/datastore/?output=train", {}, 400),
        ("GET", "/datastore/image?image=..%2Fa", {}, 403),
        ("DELETE", "/datastore/image?id=../a", {}, 403),
        ("DELETE", "/datastore/label?id=a&tag=..", {}, 403),
        ("PUT", "/session/?uncompress=true", {"uploads": [("files", "a.nii.gz")]}, 400),
        ("PUT", "/session/", {"uploads": [("files", "a.json")]}, 400),
        ("PUT", "/session/", {"uploads": [("files", "a.zip")]}, 400),
        ("GET", "/session/..", {}, 404),
        ("DELETE", "/session/..", {}, 404),
        ("POST", "/infer/istn?session_id=../../tmp", {}, 403),
        ("POST", "/infer/istn?image=/etc/passwd", {}, 403),
        ("POST", "/infer/istn?image=a&output=dicom_seg", {}, 400),
        ("POST", "/infer/other?image=a", {}, 404),
        ("POST", "/infer/wsi/istn?image=a", {}, 404),
        ("POST", "/infer/wsi_v2/istn?image=a", {}, 404),
        ("POST", "/train/istn?run_sync=true", {}, 400),
        ("POST", "/batch/infer/istn?images=[]", {}, 400),
        ("POST", "/batch/infer/istn", {"body": {"gpus": "0"}}, 400),
        ("POST", "/batch/infer/istn", {"body": {"label_tag": "final"}}, 400),
        ("POST", "/scoring/dice", {}, 404),
        ("POST", "/activelearning/other", {}, 404),
        ("POST", "/activelearning/random", {"body": {"labels": CALL}}, 400),
        ("GET", "/proxy/dicom/wado/a", {}, 404),
        ("GET", "/logs/", {}, 404),
        ("GET", "/model/istn", {}, 404),
        ("PUT", "/model/istn", {}, 404),
        ("DELETE", "/model/istn", {}, 404),
        ("POST", "/reload", {}, 404),
        ("GET", "/ohif/..", {}, 404),
        ("GET", "/static/../main.py", {}, 404),
        ("PATCH", "/train/istn", {}, 405),
    ],
)
def test_other_requests_are_not_served(method, url, options, status):
    with pytest.raises(RequestError) as error:
        send(method, url, **options)
    assert error.value.status == status


@pytest.mark.parametrize(
    "head, good",
    [
        (b"NRRD0004\ntype: short\nencoding: raw\n\n" + bytes(9), True),
        (b"NRRD0004\ntype: short\ndata file: /etc/passwd\n\n", False),
        (b"NRRD0004\r\ntype: short\r\nDataFile: ../a.raw\r\n\r\n", False),
        (b"NRRD0004\n# " + b"a" * 1000, False),  # a header that does not end
        (b"ObjectType = Image\nElementDataFile = LOCAL\n" + bytes(9), True),
        (b"ObjectType = Image\nElementDataFile = /etc/passwd\n", False),
        (b"ObjectType = Image\n ElementDataFile=LIST\n/etc/passwd\n", False),
        (b"ObjectType = Image\nElementDataFile : /etc/passwd\n", False),  # what MetaIO takes as well
        (b"ObjectType = Image\n\x0bElementDataFile = /etc/passwd\n", False),
        (b"ObjectType = Image\nElementDataFile = LOCAL\x00/etc/passwd\n", False),
        (b"ObjectType = Image\nElementDataFile\n = /etc/passwd\n", False),
        (b"ObjectType = Image\nComment = " + b"a" * 1000, False),  # what comes later is not known
        (b"NRRD0004\ntype: short\ncontent: x\rdata file: /etc/passwd\n\n", False),  # what teem takes as well
        (b"ObjectType = Image\r\nElementDataFile = local\r\n" + bytes(9), True),
        (bytes(400), True),
    ],
)
def test_an_upload_names_no_other_file_as_its_data(head, good):
    if good:
        return check_inline(head, "file")
    with pytest.raises(RequestError, match="must hold its data"):
        check_inline(head, "file")


def test_replies_name_no_folder_of_the_server():
    reply = {
        "path": "/srv/studies/case 1.nii.gz",
        "details": ['File "/usr/lib/python3.11/a.py", line 1', "saved to /srv/my app/model/istn; next"],
        "detail": "cannot read PosixPath('/tmp/x/tmpab.nii.gz')",
        "url": "see https://docs.monai.io/en/latest, T1/T2 and #/components/schemas/A",
        "number": 1.5,
    }
    assert without_paths(reply, ["/srv/studies", "/srv/my app", ""]) == {
        "path": "case 1.nii.gz",
        "details": ['File "a.py", line 1', "saved to istn; next"],
        "detail": "cannot read PosixPath('tmpab.nii.gz')",
        "url": "see https://docs.monai.io/en/latest, T1/T2 and #/components/schemas/A",
        "number": 1.5,
    }
