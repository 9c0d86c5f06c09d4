"""A MONAI Label app that serves the ISTN bundle as the stock ``monaibundle`` app does, but trusts no request.

See README.md in this folder.
"""

import logging
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import monailabel
import torch
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, device_map
from request_checks import Check, anything, check_keys
from request_guard import RequestGuard
from requests_allowed import MODEL, all_routes, batch_keys, infer_keys, train_keys
from studies_folder import StudiesFolder

from istn_monai.folders import BEST
from istn_monai.levels import USUAL_STEPS
from istn_monai.registration import bundle_folder
from istn_monai.weights import read_weights
from istn_monai.workflow.errors import foreseen_cause
from istn_monai.workflow.host_requests import CACHE, OWN_KEYS, RequestError, check_apart
from istn_monai.workflow.host_training import copy_once

logger = logging.getLogger(__name__)
MAX_UPLOAD_MB = "1024"
Request = dict[str, Any]


def served_bundle(app_dir: str, conf: dict[str, str]) -> str:
    """The bundle's folder: ``--conf bundle DIR``, or a copy of the installed one, which training may change."""
    if "bundle" in conf:
        return str(bundle_folder(conf["bundle"]))
    return str(copy_once(bundle_folder(), Path(app_dir) / "model" / MODEL))


def devices() -> list[str]:
    """The names of the devices that a request may ask for: MONAI Label's and PyTorch's."""
    cuda = ["cuda"] if torch.cuda.is_available() else []
    return list(dict.fromkeys(["cpu", *cuda, *device_map(), *device_map().values()]))


def upload_limit(conf: dict[str, str]) -> int:
    """The largest request in bytes; ValueError unless ``--conf max_upload_mb`` is a number above 0."""
    value = conf.get("max_upload_mb", MAX_UPLOAD_MB)
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"--conf max_upload_mb must be a whole number of at least 1, got {value!r}")
    return int(value) << 20


def allowed_origins(conf: dict[str, str]) -> list[str]:
    """The web pages that may use the server; ValueError unless ``--conf cors_origins`` is a list of origins.

    MONAI Label allows all where ``MONAI_LABEL_CORS_ORIGINS`` names none, and does not start where it names one.
    """
    origins = [origin.strip() for origin in conf.get("cors_origins", "").split(",") if origin.strip()]
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise ValueError(f"--conf cors_origins must be like https://viewer.example,http://10.0.0.5, got {origin!r}")
    return origins


def explain(error: Exception) -> tuple[int, str]:
    """The HTTP status and the text of an error: 4xx for the client's own, else 500, of which the log has the rest."""
    if isinstance(error, MONAILabelException):
        return 404, str(error.msg)
    cause = foreseen_cause(error) or error  # MONAI wraps it in others
    status = cause.status if isinstance(cause, RequestError) else 400 if isinstance(cause, ValueError) else 500
    if status == 500:
        logger.error("request failed", exc_info=error)
    return status, str(cause) or type(cause).__name__


def checked(request: Request, keys: dict[str, Check], own: tuple[str, ...]) -> Request:
    """A request with nothing in it but what is allowed, checked again, and what the server itself put there."""
    allowed = {key: value for key, value in request.items() if keys.get(key, anything) is not anything}
    check_keys(allowed, keys, "the request")
    return {key: request[key] for key in own if key in request} | allowed


class Infer(BundleInferTask):
    """MONAI Label's task, with the cases of the datastore to choose from.

    It puts the values that clients can set into the bundle's configuration: no texts here.
    """

    def __init__(self, bundle: str, conf: dict[str, str], cases: Callable[[], list[str]]) -> None:
        super().__init__(bundle, conf, load_strict=True)
        self.cases = cases
        self._config |= {"refine_steps": USUAL_STEPS, "model_filename": weights(bundle)}

    def config(self) -> Request:
        """What viewers offer: of a list they make a drop-down, whose first entry is what they send by default."""
        atlas = [""] if self.bundle_config.get("moving_image") else []
        cases = [*atlas, *self.cases()] or [""]
        return super().config() | {"moving_image": cases, "model_filename": weights(self.bundle_path)}

    def pre_transforms(self, data: Any = None) -> Any:
        texts = {key: value for key, value in self.displayable_configs.items() if isinstance(value, str)}
        return super().pre_transforms({**data, **texts})


class Batch(BatchInferTask):
    """MONAI Label's registration of all images, but of the moving one, which is not registered to itself."""

    def get_images(self, request: Request, datastore: Datastore) -> list[str]:
        return [case for case in super().get_images(request, datastore) if case != request.get("moving_image")]


class Train(BundleTrainTask):
    """MONAI Label's task, of which a request may set what concerns training alone."""

    def config(self) -> Request:
        offered = {"device": device_list(), "pretrained": True, "max_epochs": 50, "val_split": 0.2}
        return offered | {"model_filename": weights(self.bundle_path)}

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list) -> None:
        if pretrained:  # MONAI Label looks for the file None
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)


def weights(bundle: str) -> list[str]:
    """The names of a bundle's checkpoints of the network that is served, ``model.pt`` first: it cannot load others."""
    files = sorted(Path(bundle, "models").glob("*.pt"), key=lambda file: (file.name != BEST, file.name))
    times = [file.stat().st_mtime_ns for file in files]
    fit = [fits(file, time, files[0], times[0]) for file, time in zip(files, times, strict=True)]
    return [file.name for file, good in zip(files, fit, strict=True) if good or file == files[0]]


@cache
def fits(file: Path, changed: int, served: Path, served_changed: int) -> bool:
    """Whether a checkpoint can be loaded into the network of the one that is served; the numbers: when they changed."""
    try:
        settings = read_weights(served).settings
        if settings is not None:  # else nothing is known of the network
            read_weights(file).load_into(settings.network())
    except (OSError, ValueError):
        return False
    return True


class IstnApp(MONAILabelApp):
    """Serves one bundle as the model ``istn``."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.bundle = served_bundle(app_dir, conf)
        self.limit, self.origins = upload_limit(conf), allowed_origins(conf)
        sessions = settings.MONAI_LABEL_SESSION_PATH or str(CACHE / "sessions")
        self.folders = {"app": app_dir, "bundle": self.bundle, "sessions": sessions}
        if not studies.startswith(("http://", "https://")):
            check_apart(studies, self.folders)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"MONAI Label, ISTN registration ({monailabel.__version__})",
            description="Propagates the labels of a moving image, or of an atlas, to the patient's image",
            version=monailabel.__version__,
        )

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return StudiesFolder(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {MODEL: Infer(self.bundle, self.conf, self.moving_images)}

    def moving_images(self) -> list[str]:
        """The cases that a request may name as the moving image: those with final labels first, then with others."""
        store = self.datastore()
        if not isinstance(store, StudiesFolder):
            return []
        rank = {case: store.label_rank(case) for case in store.list_images()}
        return sorted(rank, key=lambda case: (rank[case], case))

    def init_batch_infer(self) -> BatchInferTask:
        return Batch()

    def init_trainers(self) -> dict[str, TrainTask]:
        return {MODEL: Train(self.bundle, self.conf)}

    def on_init_complete(self) -> None:
        """Puts the guard before the server, which has called this and begins to serve when it is done."""
        super().on_init_complete()
        from monailabel.app import app as server

        guard = {
            "routes": all_routes(devices(), lambda: weights(self.bundle)),
            "explain": explain,
            "origins": self.origins,
            "roots": [self.studies, *self.folders.values(), os.getcwd(), os.path.expanduser("~")],
            "limit": self.limit,
            "prefix": settings.MONAI_LABEL_API_STR,
        }
        every = {"allow_credentials": True, "allow_methods": ["*"], "allow_headers": ["*"]}
        server.user_middleware[:] = [
            Middleware(CORSMiddleware, allow_origins=self.origins, **every),
            Middleware(RequestGuard, **guard),
        ]
        server.middleware_stack = server.build_middleware_stack()

    def infer(self, request: Request, datastore: Any = None) -> Request:
        keys = infer_keys(devices(), lambda: weights(self.bundle))
        ignored = sorted(OWN_KEYS.intersection(request) - {"moving_image", "moving_label", "label"})
        result = super().infer(checked(request, keys, ("model", "image", "label")), datastore)
        if ignored:
            result["params"].setdefault("warnings", []).append(f"not read: {', '.join(ignored)}")
        return result

    def batch_infer(self, request: Request, datastore: Any = None) -> Request:
        keys = batch_keys(devices(), lambda: weights(self.bundle))
        one = {"multi_gpu": False, "max_workers": 1}  # the network is shared
        return super().batch_infer(checked(request, keys, ("model", "images")) | one, datastore)

    def train(self, request: Request) -> Request:
        keys = train_keys(devices(), lambda: weights(self.bundle))
        fixed = {"run_id": "run", "multi_gpu": False, "gpus": "all", "tracking": "None"}
        return super().train(checked(request, keys, ("model",)) | fixed)
