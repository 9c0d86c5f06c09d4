"""What a folder of data holds: plain folders of files of the same names, nnU-Net's and the Decathlon's, or BIDS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from istn_monai.io.bids import bids_subjects
from istn_monai.io.bids_files import MARK, is_bids, trees_of
from istn_monai.io.datalist import IMAGE_SUFFIXES
from istn_monai.io.landmarks import POINT_SUFFIXES
from istn_monai.io.named_files import by_case, joined, named_files, one_channel, stem_of
from istn_monai.io.nnunet import FILE, Description, described
from istn_monai.io.subject_files import EVERYTHING, Selection, Subjects, examples

#: names of sub-folders: plain ones, and those of the Medical Segmentation Decathlon and nnU-Net
IMAGE_FOLDERS, LABEL_FOLDERS, POINT_FOLDERS = ("images", "imagesTr"), ("labels", "labelsTr"), ("landmarks", "points")
LAYOUT = (
    "FOLDER/images and FOLDER/labels (or FOLDER/landmarks), with a file of the same name for each subject, a folder of "
    "nnU-Net, or BIDS"
)


def sub_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The one sub-folder that has one of these names; ValueError if there are two."""
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has both {' and '.join(path.name for path in found)}: remove one, or give a datalist"
        )
    return found[0] if found else None


def is_data_set(folder: Path) -> bool:
    """Whether a folder is that of a data set, and not one of images."""
    readable = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
    if not readable or any(stem_of(file) for file in folder.iterdir()):
        return False
    return any((folder / name).is_dir() for name in IMAGE_FOLDERS) or is_bids(folder) or (folder / FILE).is_file()


def data_set_subjects(folder: Path, selection: Selection = EVERYTHING) -> Subjects:
    """The subjects of a data set, in whichever layout.

    Args:
        folder: of the data set.
        selection: of images and label maps, where subjects have several.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: for files that cannot be joined without a guess.
    """
    images, labels, points = (sub_folder(folder, names) for names in (IMAGE_FOLDERS, LABEL_FOLDERS, POINT_FOLDERS))
    if (images is None and is_bids(folder)) or ((folder / MARK).is_file() and trees_of(folder)):
        return bids_subjects(folder, selection)
    description = described(folder)
    if images is None and description.listed:
        return listed_subjects(folder, description, selection)
    if images is None:
        near = [path for path in (folder.parent, *sorted(folder.iterdir())) if is_data_set(path)]
        hint = f"; did you mean {examples(near)}?" if near else ""
        raise FileNotFoundError(
            f"no folder {' or '.join(IMAGE_FOLDERS)} in {folder}: data are {LAYOUT}, or a datalist{hint}"
        )
    found = named_subjects(images, labels, points, selection, description)
    return with_number(found, folder, description)


def named_subjects(
    images: str | Path,
    labels: str | Path | None = None,
    landmarks: str | Path | None = None,
    selection: Selection = EVERYTHING,
    description: Description | None = None,
) -> Subjects:
    """The subjects of folders whose files have the same names.

    Args:
        images: folder with one image for each subject, or with a file for each of its channels.
        labels: folder with label maps.
        landmarks: folder with landmark files, or landmark maps.
        selection: of a channel.
        description: of the data set.
    """
    told = description or Description()
    check_no_label_map(selection, images)
    files = named_files(images, "images", told.suffixes)
    others = {}
    if labels is not None:
        others["label"] = named_files(labels, "labels", told.suffixes)
    if landmarks is not None:
        others["points"] = named_files(landmarks, "landmarks", (*POINT_SUFFIXES, *IMAGE_SUFFIXES), "landmark file")
    cases = {case for known in others.values() for case in known}
    channels = by_case(files, cases, bool(told.channels) or selection.modality is not None)
    chosen, remarks = one_channel(channels, selection.modality, told.channels)
    visits, more = joined(chosen, others)
    return Subjects({case: [visit] for case, visit in visits.items()}, told.names, (*remarks, *more))


def listed_subjects(folder: Path, description: Description, selection: Selection) -> Subjects:
    """The subjects whose files nnU-Net's description lists, wherever they are."""
    check_no_label_map(selection, folder)
    channels = {case: files for case, (files, _) in description.listed.items()}
    images, remarks = one_channel(channels, selection.modality, description.channels)
    visits = {case: [{"image": image, "label": description.listed[case][1]}] for case, image in sorted(images.items())}
    return Subjects(visits, description.names, tuple(remarks))


def check_no_label_map(selection: Selection, place: str | Path) -> None:
    """ValueError for a choice of label maps where there is none."""
    if selection.label_map is not None:
        raise ValueError(f"label_map chooses among the label maps of BIDS, and {place} is none: leave it out")


def with_number(found: Subjects, folder: Path, description: Description) -> Subjects:
    """With a remark if the description says another number of cases."""
    if description.number in (None, len(found.visits)):
        return found
    remark = (
        f"{folder / FILE} says numTraining {description.number}, and there are {len(found.visits)} cases: all count"
    )
    return Subjects(found.visits, found.names, (*found.remarks, remark))
