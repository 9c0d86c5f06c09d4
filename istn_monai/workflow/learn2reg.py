"""A submission to Learn2Reg: the displacements of registered pairs, and the metrics that the challenge takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.resampling import pull_back_points
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.datalist import Item, existing, read_datalist, read_json
from istn_monai.io.itk_transforms import read_transform
from istn_monai.io.learn2reg import (
    check_one_grid,
    displacement_name,
    is_learn2reg,
    label_values,
    landmark_files,
    numbers_of,
    write_displacement,
)
from istn_monai.io.paths import absolute, check_output_dir, new_file, replacing
from istn_monai.io.voxel_landmarks import read_voxels
from istn_monai.learn2reg_metrics import (
    DSC,
    HD95,
    SDLOGJ,
    TRE,
    Metric,
    aggregated,
    dice,
    each_label,
    robust_hausdorff,
    sdlogj,
    target_errors,
    warped_labels,
)
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, MASK_KEYS
from istn_monai.workflow.console import counted
from istn_monai.workflow.results import DISPLACEMENT, REPORT, TRANSFORM

SUBMISSION, MEASURED = "submission", "learn2reg.json"
#: tasks whose SDlogJ the challenge takes where the fixed image's mask is 1
MASKED = ("AbdomenMRCT", "LungCT", "NLST", "ThoraxCBCT")


class Submission:
    """The displacement files of a task's pairs, and the challenge's metrics of them.

    Args:
        datalist: the task's ``*_dataset.json``.
        items: the files of its pairs, see :func:`istn_monai.io.datalist.read_datalist`.
        folder: of the displacement files.

    Raises:
        ValueError: naming the file or the pair, if the datalist is not Learn2Reg's, a pair's images are on two grids,
            or pairs have nothing to compare, or not the same.
    """

    def __init__(self, datalist: str | Path, items: Sequence[Item], folder: str | Path) -> None:
        content = task_of(datalist)
        self.name = str(content.get("name") or Path(datalist).stem)
        self.items = items
        self.folder = absolute(folder)
        names = [displacement_name(item[IMAGE_KEYS[1]], item[IMAGE_KEYS[0]]) for item in items]
        self.files = [self.folder / name for name in names]
        for item in items:
            moving, fixed = (grid_of(item[key]) for key in IMAGE_KEYS)
            check_one_grid(fixed, moving, case_of(item))
        check_alike(items)
        self.labels = labels_of(content, items)

    def check_free(self, own: bool) -> None:
        """FileExistsError if there is a displacement that is not ``own``, of an earlier or an interrupted command."""
        there = [file for file in self.files if file.exists()]
        if there and not own:
            raise FileExistsError(f"{there[0]} is there already: choose another output_dir, or add --overwrite")

    def is_whole(self) -> bool:
        """Whether all displacements are there."""
        return all(file.is_file() for file in self.files)

    def keep(self, number: int, pair: Mapping[str, Any], ddf: Tensor, transform: WorldTransform | None) -> None:
        """Writes the displacement of one pair.

        Args:
            number: of the pair.
            pair: preprocessed, with the original images; the moving one lies where the initial alignment put it.
            ddf: ``(1, D, *S)`` on the registration grid.
            transform: of which it is a sample; None interpolates it, see :func:`pull_back_points`.
        """
        fixed, moving = (Grid.of(pair[f"{key}_original"]) for key in IMAGE_KEYS[::-1])
        if transform is None:
            points = pull_back_points(ddf, Grid.of(pair["image"]), fixed, moving)
        else:
            points = transform.pull_back_points(fixed, moving)
        write_displacement(points[0], fixed, self.files[number])

    def measured(self, numbers: Iterable[int] | None = None) -> dict[str, Any]:
        """What the challenge's evaluation gives, ``aggregates`` and ``cases``, and ``initial``, without registration.

        Args:
            numbers: of the pairs; None for all.
        """
        chosen = list(range(len(self.items)) if numbers is None else numbers)
        missing = [self.files[number] for number in chosen if not self.files[number].is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} displacements are missing, the first is {missing[0]}")
        cases, before = {}, []
        for number in counted(chosen, "measuring"):
            item, field = self.items[number], read_displacement(self.files[number], self.items[number])
            cases[case_of(item)] = self.metrics(item, field)
            before.append(self.metrics(item, np.zeros_like(field)))
        aggregates, initial = aggregated(list(cases.values())), aggregated(before)
        masked = self.name in MASKED
        return {"name": self.name, "masked": masked, "aggregates": aggregates, "initial": initial, "cases": cases}

    def metrics(self, item: Item, displacement: np.ndarray) -> dict[str, Metric]:
        """The challenge's metrics of one pair."""
        mask = read_volume(item[MASK_KEYS[1]]) if self.name in MASKED and MASK_KEYS[1] in item else None
        smooth = sdlogj(displacement, mask)
        found: dict[str, Metric] = {SDLOGJ: {"mean": smooth, "detailed": smooth}}
        if LABEL_KEYS[0] in item:
            moving, fixed = (read_volume(item[key]) for key in LABEL_KEYS)
            maps = fixed, moving, warped_labels(moving, displacement)
            found |= {DSC: each_label(dice, *maps, self.labels), HD95: each_label(robust_hausdorff, *maps, self.labels)}
        for name, files in landmarks_of(item).items():
            points, spacing = [voxels_in(file) for file in files], grid_of(item[IMAGE_KEYS[0]]).spacing
            errors = target_errors(displacement, points[1], points[0], spacing)
            found[name] = {"mean": float(errors.mean()), "detailed": errors.tolist()}
        return found


def task_of(datalist: str | Path) -> dict[str, Any]:
    """What a ``*_dataset.json`` holds, or a ValueError if it is another file."""
    content = read_json(existing(datalist), "datalist", "a JSON object")
    if not is_learn2reg(content):
        raise ValueError(
            f"learn2reg: {datalist} is no *_dataset.json of Learn2Reg, which lists pairs as registration_val, each "
            "with fixed and moving: give that file as data, or leave learn2reg out"
        )
    return content


def submission(learn2reg: bool, data: Sequence[Item], output_dir: str | Path) -> Submission | None:
    """The submission that an evaluation writes; None without ``learn2reg``."""
    return Submission(data.file, data, absolute(output_dir) / SUBMISSION) if learn2reg else None  # type: ignore[attr-defined]


def labels_of(content: Mapping[str, Any], items: Sequence[Item]) -> list[int]:
    """The label values that a task compares: those that its JSON names, or else those of the fixed images."""
    files = {item[LABEL_KEYS[1]] for item in items if LABEL_KEYS[1] in item}
    named = label_values(content) if files else []
    return named or sorted({int(value) for file in files for value in np.unique(read_volume(file)) if value})


def evaluated_labels(datalist: str | Path, split: str = "testing") -> list[list[int]]:
    """The groups of label values to evaluate on a task's pairs: each its own; none for landmarks alone."""
    content = task_of(datalist)
    return [[value] for value in labels_of(content, read_datalist(datalist, [split], IMAGE_KEYS)[split])]


def case_of(item: Item) -> str:
    """A pair by its numbers, as the challenge's evaluation calls it."""
    moving, fixed = ("_".join(numbers_of(item[key])) for key in IMAGE_KEYS)
    return f"{fixed}<--{moving}"


def grid_of(image: str) -> Grid:
    """The grid of an image, by its header."""
    header = nib.load(image)
    return Grid(header.shape[:3], header.affine)


def read_volume(file: str) -> np.ndarray:
    """The values of a label map or a mask."""
    return nib.load(file).get_fdata()


def read_displacement(file: Path, item: Item) -> np.ndarray:
    """A displacement ``(H, W, D, 3)`` in voxels, or a ValueError if it is not on the fixed image's grid."""
    field, size = nib.load(file).get_fdata(), grid_of(item[IMAGE_KEYS[1]]).spatial_size
    if field.shape != (*size, 3):
        raise ValueError(f"{file} has shape {field.shape}, the displacement of {item[IMAGE_KEYS[1]]} {(*size, 3)}")
    return field


def landmarks_of(item: Item) -> dict[str, tuple[Path, Path]]:
    """A pair's landmarks, of the moving and the fixed image, by the name of their metric."""
    found = {name: landmark_files(room, item[IMAGE_KEYS[1]], item[IMAGE_KEYS[0]]) for room, name in TRE.items()}
    return {name: files for name, files in found.items() if files is not None}


def voxels_in(file: Path) -> np.ndarray:
    """``(N, 3)``: a file of landmarks."""
    return np.array(read_voxels(file.read_text(encoding="utf-8")))


def check_alike(items: Sequence[Item]) -> None:
    """ValueError unless all pairs have something to compare, of the same kinds."""
    kinds = {case_of(item): compared_in(item) for item in items}
    wanted = sorted(set().union(*kinds.values()))
    if not wanted:
        raise ValueError(
            "learn2reg: the pairs have neither labels (labelsTr) nor landmarks (landmarksTr, keypointsTr) of their "
            "images' names: there is nothing to compare; of test pairs write a submission with istn-monai learn2reg"
        )
    for case, known in kinds.items():
        if lacking := [kind for kind in wanted if kind not in known]:
            raise ValueError(
                f"learn2reg: pair {case} lacks {' and '.join(lacking)} of one image or both, which other pairs have: "
                "add the files, or take the pair out"
            )


def compared_in(item: Item) -> list[str]:
    """What a pair has for a comparison."""
    return ["labels"] * (item.keys() >= set(LABEL_KEYS)) + list(landmarks_of(item))


def table(result: Mapping[str, Any]) -> str:
    """The challenge's metrics as text: before registration, and after, with standard deviation and robustness."""
    lines = [f"Learn2Reg {result['name']}, {len(result['cases'])} pairs"]
    lines.append(f"{'':14}{'initial':>12}{'registered':>12}{'std':>12}{'30 %':>12}")
    for name, values in result["aggregates"].items():
        numbers = (result["initial"][name]["mean"], values["mean"], values["std"], values["30"])
        lines.append(f"{name:14}" + "".join(f"{number:12.4f}" for number in numbers))
    return "\n".join(lines)


def write_measured(result: Mapping[str, Any], file: Path) -> None:
    """JSON, as the challenge's evaluation writes it; nan and infinite numbers are null."""
    finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
    file.write_text(json.dumps(finite, indent=1), encoding="utf-8")


def measure(datalist: str | Path, split: str, folder: Path, overwrite: bool = False) -> str:
    """Compares the displacements in a folder as the challenge does it; the table, which is also in ``FOLDER.json``."""
    file = new_file(folder.with_name(f"{folder.name}.json"), overwrite=overwrite)
    result = Submission(datalist, read_datalist(datalist, [split], IMAGE_KEYS)[split], folder).measured()
    with replacing(file) as part:
        write_measured(result, part)
    return table(result)


def export(registered: str | Path, output: str | Path, overwrite: bool = False) -> list[Path]:
    """Writes the displacements of registered pairs of files in the challenge's form.

    Args:
        registered: folder of one pair's results, or of ``pair_0000``, ``pair_0001`` ..., as ``register`` writes them.
        output: folder for them.
        overwrite: replaces displacements that are there.

    Raises:
        FileNotFoundError: if no pair was registered there.
    """
    root = absolute(registered)
    reports = [root / REPORT] if (root / REPORT).is_file() else sorted(root.glob(f"pair_*/{REPORT}"))
    if not reports:
        raise FileNotFoundError(f"registered: no {REPORT} in {root} or its pair_0000 ...: register the pairs first")
    folder = check_output_dir(output, "output")
    records = [images_of(report) for report in reports]
    files = [new_file(folder / checked_name(record), overwrite=overwrite) for record in records]
    for report, record, file in zip(reports, records, files, strict=True):
        written = [report.parent / name for name in (TRANSFORM, DISPLACEMENT) if (report.parent / name).is_file()]
        moving, fixed = (grid_in(record[key]) for key in IMAGE_KEYS)
        write_displacement(read_transform(written[0]).pull_back_points(fixed, moving)[0], fixed, file)
    return files


def images_of(report: Path) -> Mapping[str, Any]:
    """What the report of a registered pair says of its files; ValueError for that of anything else."""
    records = read_json(report, "report", "a JSON object").get("inputs")
    written = any((report.parent / name).is_file() for name in (TRANSFORM, DISPLACEMENT))
    if not written or not isinstance(records, Mapping) or not set(IMAGE_KEYS) <= set(records):
        raise ValueError(
            f"registered: {report.parent} holds no registered pair ({TRANSFORM} or {DISPLACEMENT}, and what "
            f"{REPORT} says of it); give a folder that register wrote with an engine other than none"
        )
    return records


def checked_name(record: Mapping[str, Any]) -> str:
    """The name of the displacement of a pair whose files a report keeps; ValueError unless they are of one grid."""
    name = displacement_name(*(str(record[key]["file"]) for key in IMAGE_KEYS[::-1]))
    moving, fixed = (grid_in(record[key]) for key in IMAGE_KEYS)
    check_one_grid(fixed, moving, name)
    return name


def grid_in(record: Mapping[str, Any]) -> Grid:
    """The grid of an image that a report keeps."""
    return Grid(record["shape"], np.asarray(record["affine"]))
