"""What 3D Slicer's MONAI Label module sends, request by request, as its code of version 0.8.5 and later has it.

``MONAILabel.py`` (``updateConfigTable``, ``getParamsFromConfig``, ``onClickSegmentation``, ``onUploadImage``,
``onSaveLabel``) and ``MONAILabelLib/client.py`` (``encode_multipart_formdata``) of MONAI Label's ``plugins/slicer``.
"""

from __future__ import annotations

import json
import mimetypes
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from monai_label_server import Reply, Server

CLIENT = {"client_id": "user-xyz"}


def encoded(fields: dict[str, str], files: dict[str, Path]) -> tuple[bytes, str]:
    """A form, and its content type; the module names uploads by their whole path on the viewer's machine."""
    limit, lines = "----------lImIt_of_THE_fIle_eW_$", []
    for key, value in fields.items():
        lines += [f"--{limit}", f'Content-Disposition: form-data; name="{key}"', "", value]
    for key, file in files.items():
        kind = mimetypes.guess_type(str(file))[0] or "application/octet-stream"
        lines += [f"--{limit}", f'Content-Disposition: form-data; name="{key}"; filename="{file}"']
        lines += [f"Content-Type: {kind}", "", file.read_bytes()]
    lines += [f"--{limit}--", ""]
    body = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines)
    return body, f"multipart/form-data; boundary={limit}"


class SlicerPlugin:
    """The module's clicks.

    Args:
        server: to talk to.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.info: dict[str, Any] = {}

    def fetch_info(self) -> dict[str, Any]:
        """ "Fetch/Refresh models from Server": what the options' tables are made of."""
        assert self.server.request("GET", "/auth/")[0] in (200, 404)  # without passwords there is none
        self.info = json.loads(self.server.request("GET", "/info/")[2])
        return self.info

    def table(self, model: str = "istn") -> dict[str, Any]:
        """ "Options", section "infer": a drop-down for each list, of which all entries must be texts."""
        config = self.info["models"][model]["config"]
        for key, value in config.items():
            if isinstance(value, (list, dict)):
                assert value and all(isinstance(entry, str) for entry in value), f"{key}: {value}"
        return config

    def params(self, model: str = "istn", **chosen: Any) -> dict[str, Any]:
        """The parameters of a table: of a drop-down the chosen entry, or else the first."""
        config = self.table(model)
        for key, value in chosen.items():
            assert not isinstance(config[key], list) or value in config[key], f"{key} offers no {value}"
        first = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
        return first | chosen

    def run(self, image: str, session: str = "", **chosen: Any) -> Reply:
        """ "Auto Segmentation", "Run"."""
        params = self.params(**chosen) | {"result_extension": ".nrrd", "result_dtype": "uint8"} | CLIENT
        path = f"/infer/istn?image={quote_plus(image)}" + (f"&session_id={quote_plus(session)}" if session else "")
        answer = self.server.request("POST", path, *encoded({"params": json.dumps(params)}, {}))
        return Reply.of(*answer, suffix=".nrrd")

    def upload_volume(self, file: Path, name: str) -> tuple[int, dict[str, Any]]:
        """ "Upload Volume", which also "Run" does with a volume that is not the server's."""
        return self.put(f"/datastore/?image={quote_plus(name)}", CLIENT, {"file": file})

    def submit_label(self, image: str, file: Path) -> tuple[int, dict[str, Any]]:
        """ "Submit Label"."""
        names = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
        params = {"label_info": names, "model": "istn"} | CLIENT
        return self.put(f"/datastore/label?image={quote_plus(image)}", params, {"label": file})

    def put(self, path: str, params: dict[str, Any], files: dict[str, Path]) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer."""
        status, _, body = self.server.request("PUT", path, *encoded({"params": json.dumps(params)}, files))
        return status, json.loads(body)

    def next_sample(self) -> tuple[str, bytes]:
        """ "Next Sample": the id of an image without a final label, and its file."""
        body = json.dumps(CLIENT).encode()
        sample = json.loads(self.server.request("POST", "/activelearning/random", body)[2])
        return sample["id"], self.server.request("GET", f"/datastore/image?image={quote_plus(sample['id'])}")[2]
