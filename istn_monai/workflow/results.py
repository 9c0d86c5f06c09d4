"""Writing a registered pair to disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import get_package_version
from torch import nn

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import affine_of
from istn_monai.geometry.transformation import Transformation
from istn_monai.geometry.world_transform import WorldTransform, closed_inverse, world_transform
from istn_monai.inferer import refinement_of
from istn_monai.io.images import save_image
from istn_monai.io.itk_transforms import write_displacement, write_transform
from istn_monai.io.landmarks import write_points
from istn_monai.io.paths import absolute, check_apart, check_output_dir, checked_overwrite
from istn_monai.io.staging import FILES, ResultFolder
from istn_monai.metrics import FIELD_METRICS, field_metrics, without_nan
from istn_monai.moved_points import errors, moved, unmet
from istn_monai.qa.inspector import PairInspector
from istn_monai.qa.viewer import view_page
from istn_monai.transforms.keys import GUIDANCE, MAP_KEYS, MASK_KEYS, PAIR_KEYS, POINT_KEYS
from istn_monai.transforms.map_files import with_channels
from istn_monai.workflow.inverse import inverse_of_pair
from istn_monai.workflow.pair_metrics import consistency, jacobian_of
from istn_monai.workflow.provenance import (
    differing_inputs,
    differing_options,
    input_record,
    listed,
    weights_hash,
)
from istn_monai.workflow.result_folders import (
    DISPLACEMENT,
    IMAGES,
    INVERSE,
    JACOBIAN,
    MOVED,
    QA_PAGE,
    REPORT,
    TRANSFORM,
    VIEW_PAGE,
    pair_folder,
)

#: images of a pair; of those that have one, the original's shape and place are kept with its hash
INPUT_KEYS = (*PAIR_KEYS, *MASK_KEYS)


def check_pair_files(output_dir: str | Path, results: ResultFolder | None = None, **files: str | None) -> Path:
    """Refuses missing input files, and an output folder where a result would replace an input.

    Args:
        output_dir: folder for results.
        results: what is written there; by default those of a registered pair.
        files: ``moving_image``, ``fixed_image`` and, optionally, ``moving_label``.

    Returns:
        The folder's absolute path, made.
    """
    for key, file in files.items():
        if file is None and key.endswith("image"):
            raise ValueError(f"{key} is not set: give --{key} FILE")
        if file is not None and not absolute(file).exists():
            raise FileNotFoundError(f"{key}: no such file: {absolute(file)}")
    results = results or pair_folder(output_dir)
    check_apart(results.files, [(key, file) for key, file in files.items() if file is not None])
    results.check_free()
    return check_output_dir(output_dir)


class SavePairHandler:
    """Evaluator handler: writes images, transforms and ``report.json``; ``result_folders.OUTPUTS`` lists them.

    Args:
        output_dir: folder.
        network: whose weights are named in the report.
        options: resolved settings for the report.
        transformation: whose parameters ``theta`` is; None writes the displacement field alone.
        inverse: also writes the transform from moving to fixed points.
        qa: also writes a QA page, and its status and reasons into the report; see :mod:`istn_monai.qa`.
        soi_labels: groups of label values that the network was trained on, None for real-valued maps; for the QA page.
        overwrite: replaces a result of other inputs, weights or options: all its files are removed. Files of others,
            and without it such a result, raise an error.
        weights_sha256: hash of the network's weights, where it is known; None takes it when it is needed.
        jacobian: also writes the Jacobian determinant of the whole transform on the fixed image's grid.
    """

    DONE = "registered"  # what a line of output says

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        options: Mapping[str, Any] | None = None,
        transformation: Transformation | None = None,
        inverse: bool = False,
        qa: bool = True,
        soi_labels: Sequence[Sequence[int]] | None = ((1,),),
        overwrite: bool = False,
        weights_sha256: str | None = None,
        jacobian: bool = False,
    ) -> None:
        self.inverse = inverse
        self.inspect = PairInspector(network, soi_labels) if qa else None
        self.output_dir = absolute(output_dir)
        self.results = pair_folder(output_dir)
        self.network = network
        self.transformation = transformation
        self.options = dict(options or {}) | {"inverse": bool(inverse), "qa": bool(qa), "jacobian": bool(jacobian)}
        self.jacobian = jacobian
        self.overwrite = checked_overwrite(overwrite)
        self.known_hash = weights_sha256

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        # MONAI's postprocessing leaves what it adds in the output, what it was given in the batch
        for pair, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.save(pair | output, torch.as_tensor(output["pred"]))

    @property
    def weights_sha256(self) -> str:
        """Hash of the network's weights."""
        return self.known_hash or weights_hash(self.network.state_dict())

    def finished(self, files: Mapping[str, str | None]) -> bool:
        """Whether the result of these files, with these weights and options, is there already, whole.

        Args:
            files: by ``INPUT_KEYS``.

        Raises:
            FileExistsError: naming what differs, if there is another result; or a file that is no result.
        """
        self.results.check_free()
        found = self.results.content()
        if found is None or self.overwrite:
            return False
        given = with_channels({key: str(file) for key, file in files.items() if file is not None})
        then = {"weights_sha256": found["weights_sha256"], **found["options"]}
        now = {"weights_sha256": self.weights_sha256, **self.options}
        what = listed(chain(differing_inputs(found["inputs"], given), differing_options(then, now)))
        if what:
            raise FileExistsError(
                f"{self.output_dir} holds another result ({what}): add --overwrite to replace it, or choose another "
                "output_dir"
            )
        return self.results.is_whole()

    def save(self, pair: Mapping[str, Any], ddf: torch.Tensor) -> None:
        """Writes one pair's results, all or none.

        Args:
            pair: what pre- and postprocessing made of it; files of landmarks in it, ``moving_points`` and
                ``fixed_points``, are moved along, see :mod:`istn_monai.moved_points`.
            ddf: ``(D, *S)``.

        Raises:
            FileExistsError: if another result is there, without ``overwrite``.
            OSError: naming the file that could not be written; what was there before is whole then.
        """
        points = {key: str(pair[key]) for key in POINT_KEYS if key in pair}
        with self.results.staged():
            inputs = self.inputs(pair, points)
            self.finished({key: record["file"] for key, record in inputs.items()})
            note = self.write(pair, ddf, inputs, points)
        print(f"{self.DONE}: results in {self.output_dir}{note}")

    def write(
        self, pair: Mapping[str, Any], ddf: torch.Tensor, inputs: Mapping[str, Any], points: Mapping[str, str]
    ) -> str:
        """Writes the files to the folder's hidden one; what the QA says of them, for a line of output."""
        for name in IMAGES:
            if name in pair:
                with self.results.writing(f"{name}.nii.gz") as file:
                    save_image(pair[name], file)
        transforms = self.save_transforms(pair)
        report = self.report(pair) | {"inputs": inputs, "transforms": transforms}
        if POINT_KEYS[0] in points:
            report["points"] = self.save_points(pair, points)
        note = ""
        if self.inspect is None:
            report["metrics"] = field_metrics(ddf.cpu(), Grid.of(pair["image"]).spacing) | consistency(pair)
        else:
            verdict, page, view = self.inspect(pair)
            with self.results.writing(QA_PAGE) as file:
                page.save(file)
            with self.results.writing(VIEW_PAGE) as file:
                file.write_text(view_page(view), encoding="utf-8")
            names = [*FIELD_METRICS, *(name for name in verdict.metrics if name.startswith("inverse_consistency"))]
            report["metrics"] = {name: verdict.metrics[name] for name in names}
            report["qa"] = verdict.report()
            note = f"; QA {verdict.status}, see {QA_PAGE}"
        self.write_report(report)
        return note

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Writes the report, which names all files that were written."""
        named = dict(report) | {FILES: [*self.results.written, REPORT]}
        with self.results.writing(REPORT) as file:
            file.write_text(json.dumps(without_nan(named), indent=1, default=str), encoding="utf-8")

    def save_transforms(self, pair: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Writes what there is of transforms; what they are, for the report."""
        written: dict[str, dict[str, Any]] = {}
        if "displacement" in pair:
            field = pair["displacement"]
            with self.results.writing(DISPLACEMENT) as file:
                write_displacement(field.as_tensor().cpu(), affine_of(field), file)
            written[DISPLACEMENT] = {
                "maps": "fixed to moving points",
                "frame": "LPS mm",
                "on": "the fixed image's grid",
            }
            if self.jacobian:
                with self.results.writing(JACOBIAN) as file:
                    save_image(jacobian_of(field), file)
                written[JACOBIAN] = {"is": "determinant of transform.h5's Jacobian", "on": "the fixed image's grid"}
        if self.transformation is None or "theta" not in pair:
            return written
        transform = self.transform(pair)
        with self.results.writing(TRANSFORM) as file:
            write_transform(transform, file)
        written[TRANSFORM] = {"maps": "fixed to moving points", "frame": "LPS mm"}
        if self.inverse:
            start = torch.as_tensor(pair["initial_alignment"])
            theta = torch.as_tensor(pair["theta"])[None]
            known = closed_inverse(self.transformation, theta, Grid.of(pair["image"]), start)
            inverse, residual = inverse_of_pair(transform, pair, start, min(self.transformation.spacing), known)
            with self.results.writing(INVERSE) as file:
                write_transform(inverse, file)
            written[INVERSE] = {"maps": "moving to fixed points", "frame": "LPS mm", "residual_mm": residual}
        return written

    def transform(self, pair: Mapping[str, Any]) -> WorldTransform:
        """The pair's transform, fixed to moving points, from ``theta``."""
        if self.transformation is None:
            raise ValueError("transformation is not set: landmarks are moved by a transformation, not by a field")
        theta, start = (torch.as_tensor(pair[key]) for key in ("theta", "initial_alignment"))
        return world_transform(self.transformation, theta[None], Grid.of(pair["image"]), start)

    def save_points(self, pair: Mapping[str, Any], points: Mapping[str, str]) -> dict[str, Any]:
        """Writes the moving landmarks on the fixed side; what they are, and their errors, for the report."""
        transform = self.transform(pair)
        with self.results.writing(MOVED) as file:
            write_points(moved(transform, points), file)
        about = {MOVED: {"are": "moving landmarks on the fixed side", "frame": "LPS mm"}}
        found = errors(transform, points, torch.as_tensor(pair["initial_alignment"]))
        if POINT_KEYS[0] in pair.get(GUIDANCE, {}):
            found["unmet"] = unmet(found["tre_mm"], Grid.of(pair["image"]).spacing)
            if found["unmet"]:
                warnings.warn(f"landmarks that guided and were not met: {found['unmet']}: check them", stacklevel=2)
        return about | found

    def inputs(self, pair: Mapping[str, Any], points: Mapping[str, str]) -> dict[str, Any]:
        """What is kept of each file that was read; an image from memory has none."""
        given = {key: pair.get(f"{key}_original", pair.get(key)) for key in INPUT_KEYS}
        images = {key: image for key, image in given.items() if image is not None}
        files = {key: image.meta.get("filename_or_obj") for key, image in images.items()}
        return {
            key: (input_record(str(files[key])) if files[key] else {"file": None, "sha256": None, "state": None})
            | {"shape": list(image.shape[1:]), "affine": np.asarray(image.meta["original_affine"]).tolist()}
            for key, image in images.items()
        } | {key: input_record(str(file)) for key, file in {**points, **maps_from(pair)}.items()}

    def report(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """What was done, and with what."""
        grid, refinement = Grid.of(pair["image"]), refinement_of(pair["pred"])
        return {
            "versions": {
                "istn-monai": get_package_version("istn_monai"),
                "monai": monai.__version__,
                "torch": torch.__version__,
            },
            "weights_sha256": self.weights_sha256,
            "options": self.options,
            "initial_alignment": torch.as_tensor(pair["initial_alignment"]).tolist(),
            "registration_grid": {"shape": list(grid.spatial_size), "affine": grid.affine.tolist()},
            "frame": "affines and initial_alignment in RAS mm; initial_alignment maps fixed to moving world points",
            "refinement": {} if refinement is None else asdict(refinement.report),
        }


def maps_from(pair: Mapping[str, Any]) -> dict[str, str]:
    """The files of maps that were registered, by key; those of networks, and from memory, have none."""
    maps = {key: pair[key].meta.get("filename_or_obj") for key in MAP_KEYS if key in pair}
    return with_channels({key: str(file) for key, file in maps.items() if file})


def already(saver: SavePairHandler) -> str:
    """A line that says that there is nothing to do."""
    return f"registered before: the results in {saver.output_dir} are of these files, weights and options"
