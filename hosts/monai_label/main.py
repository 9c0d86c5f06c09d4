"""A MONAI Label app that serves the ISTN bundle as the stock ``monaibundle`` app does, with errors that say something.

See README.md in this folder.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import monailabel
import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import name_to_device

from istn_monai.registration import bundle_folder
from istn_monai.workflow.errors import foreseen_cause
from istn_monai.workflow.host_requests import RequestError

logger = logging.getLogger(__name__)
NAME = "istn"
Request = dict[str, Any]


def served_bundle(app_dir: str, conf: dict[str, str]) -> str:
    """The bundle's folder: ``--conf bundle DIR``, or a copy of the installed one, which training may change."""
    if "bundle" in conf:
        return str(bundle_folder(conf["bundle"]))
    served = os.path.join(app_dir, "model", NAME)
    if not os.path.isdir(served):
        shutil.copytree(bundle_folder(), served, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
        logger.info(f"copied the bundle to {served}")
    return served


def check_plain(value: Any, key: str) -> None:
    """RequestError for what MONAI would evaluate: requests' values go into the bundle's configuration as they are."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise RequestError(f"{key} must not begin with $, @ or %: got {value!r}, an expression")
    if isinstance(value, dict):
        if "_target_" in value:
            raise RequestError(f"{key} must not have a '_target_': requests build no objects")
        for name, item in value.items():
            check_plain(item, str(name))
    if isinstance(value, list):
        for item in value:
            check_plain(item, key)


def check_device(name: Any) -> None:
    """RequestError unless a request's device, by its name in the server's list or PyTorch's, exists."""
    try:
        torch.empty(1, device=name_to_device(name))
    except Exception as error:
        raise RequestError(f"device must be one of the server's, such as 'cpu', got {name!r}") from error


def check_request(request: Request) -> None:
    """RequestError for values that would be evaluated, a device that is not there, and files from elsewhere."""
    check_plain(request, "request")
    check_device(request.get("device"))
    for key in ("model_filename", "label_tag"):
        names = request.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not re.fullmatch(r"\w[\w.-]*", str(name)):
                raise RequestError(f"{key} must be a plain name, without folders, got {name!r}", 403)
    epochs = request.get("max_epochs", 1)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise RequestError(f"max_epochs must be a whole number of at least 1, got {epochs!r}")


def reason(error: BaseException) -> BaseException:
    """What a client should be told: the first foreseen error, which MONAI wraps in others."""
    return foreseen_cause(error) or error


@contextmanager
def readable_errors(studies: str) -> Iterator[None]:
    """Errors become HTTP answers with their cause: 4xx for the client's own, else 500; the log has the rest."""
    try:
        yield
    except HTTPException:
        raise
    except MONAILabelException as error:
        raise HTTPException(404, error.msg) from error
    except Exception as error:
        cause = reason(error)
        status = cause.status if isinstance(cause, RequestError) else 400 if isinstance(cause, ValueError) else 500
        if status == 500:
            logger.exception("request failed")
        text = str(cause).replace(studies.rstrip(os.sep) + os.sep, "")
        raise HTTPException(status, text or type(cause).__name__) from error


class IstnApp(MONAILabelApp):
    """Serves one bundle as the model ``istn``."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.bundle = served_bundle(app_dir, conf)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"MONAI Label, ISTN registration ({monailabel.__version__})",
            description="Propagates the labels of a moving image, or of an atlas, to the patient's image",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {NAME: BundleInferTask(self.bundle, self.conf, load_strict=True)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {NAME: BundleTrainTask(self.bundle, self.conf)}

    def infer(self, request: Request, datastore: Any = None) -> Request:
        with readable_errors(self.studies):
            check_request(request)
            return super().infer(request, datastore)

    def train(self, request: Request) -> Request:
        with readable_errors(self.studies):
            check_request(request)
            # an empty run_id, which clients send, would have MONAI evaluate everything in the configuration
            return super().train(request | {"run_id": request.get("run_id") or "run"})
