"""The subjects of a BIDS data set: a label map and the image that it lies on, of one subject, session and space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from istn_monai.io.bids_files import KINDS, LABEL, BidsFile, files_of, names_of
from istn_monai.io.subject_files import Selection, Subjects, Visit, examples

#: suffixes of images, of which the first that a data set has counts
IMAGES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "UNIT1", "angio", "ct", "CT")
GRIDS = ("res", "cohort")  # entities that, with the space, say on which grid a file lies
DESCRIPTIONS = {None: 0, "preproc": 1}  # which image is taken first


def bids_subjects(root: Path, selection: Selection) -> Subjects:
    """The subjects of a data set with an image and a label map that lies on it.

    Args:
        root: the data set, or one of its derivatives by itself.
        selection: by default the image is T1w, and the label map the one kind that there is.

    Raises:
        ValueError: if there is none, or where files fit equally well.
    """
    files, unknown = files_of(root)
    labels = chosen_labels(files, root, selection.label_map)
    images, remarks = chosen_images(files, root, selection.modality)
    fitting = {label.path: [image for image in images if fits(image, label)] for label in labels}
    joint = [label for label in labels if fitting[label.path]]
    if not joint:
        raise ValueError(
            f"no label map has an image of its subject, session and space in {root}: of {labels[0].path.name} there is "
            f"no {images[0].suffix}, and of {images[0].path.name} no {LABEL}; rename them, or choose by --modality and "
            "--label_map"
        )
    placed = in_one_place(joint, fitting, root)
    check_one_kind(placed, root)
    label_of: dict[Path, BidsFile] = {}
    for label in placed:
        image = nearest(label, fitting[label.path])
        if image.path in label_of:
            raise alike(label_of[image.path], label, "label maps", "--label_map")
        label_of[image.path] = label
    visits: dict[str, list[Visit]] = defaultdict(list)
    for path, label in sorted(label_of.items()):
        visits[f"sub-{label.visit[0]}"].append({"image": path, "label": label.path})
    if len(label_of) > len(visits):
        remarks.append(f"{len(visits)} subjects have {len(label_of)} images: those of one subject stay in one split")
    remarks += without_space(images[0].suffix, files, placed)
    remarks += left_out(images, labels, joint, placed) + not_understood(unknown)
    names, wrong = names_of(placed[0], root)
    return Subjects(dict(visits), names, (*remarks, *wrong))


def among(files: Sequence[BidsFile], asked: str | None, option: str, exact: bool) -> list[BidsFile]:
    """The files that a user means by entities and a suffix, a pipeline, or both: ``PIPELINE/desc-aseg``.

    Args:
        files: to choose from.
        asked: None is all.
        option: for the error.
        exact: files that show just what is asked for come before those that also have other entities.
    """
    if asked is None:
        return list(files)
    pipeline, _, words = asked.rpartition("/")
    inside = [file for file in files if pipeline in ("", file.pipeline)]
    same = [file for file in inside if file.kind == words] if exact else []
    with_words = [file for file in inside if set(words.split("_")) <= file.words | file.meanings]
    found = same or [file for file in inside if file.pipeline == words] or with_words
    if not found:
        kinds = ", ".join(sorted({file.whole_kind for file in files}))
        raise ValueError(f"{option} {asked}: there is no such file, but {kinds}: choose one of these")
    return found


def chosen_labels(files: Sequence[BidsFile], root: Path, asked: str | None) -> list[BidsFile]:
    """The label maps that count; ValueError if there is none."""
    labels = [file for file in files if file.suffix == LABEL]
    if not labels:
        others = sorted({file.suffix for file in files})
        raise ValueError(
            f"no label map in {root}: none of {len(files)} files is a {LABEL}, suffixes are {', '.join(others)}; "
            f"label maps are sub-*/anat/sub-*_{LABEL}.nii.gz, there or in derivatives/PIPELINE"
        )
    return among(labels, asked, "--label_map", exact=True)


def chosen_images(files: Sequence[BidsFile], root: Path, asked: str | None) -> tuple[list[BidsFile], list[str]]:
    """The images that count, of one suffix, and a remark on the others."""
    others = [file for file in files if file.suffix in IMAGES]
    if asked is not None:
        candidates = among([file for file in files if file.suffix != LABEL], asked, "--modality", exact=False)
    else:
        candidates = others
    suffix = min((file.suffix for file in candidates), key=order, default=None)
    if suffix is None:
        raise ValueError(
            f"no image in {root}: no name ends in {', '.join(IMAGES)}; choose another by --modality, or give the "
            "folder of the raw data, which has these derivatives in derivatives/PIPELINE"
        )
    images = [file for file in candidates if file.suffix == suffix]
    spare = sorted({file.suffix for file in others} - {suffix})
    remark = f"{suffix} images count, {' and '.join(spare)} do not; see --modality" if spare and asked is None else ""
    return images, [remark] if remark else []


def order(suffix: str) -> int:
    """The place of a suffix among those of images."""
    return IMAGES.index(suffix) if suffix in IMAGES else len(IMAGES)


def space_of(file: BidsFile, image: BidsFile) -> tuple[str | None, ...]:
    """Where a file lies; None is where its subject's own image does, which is also called by that image's suffix."""
    space = file.entities.get("space")
    own = space == image.suffix and "space" not in image.entities
    return (None if own else space, *(file.entities.get(key) for key in GRIDS))


def fits(image: BidsFile, label: BidsFile) -> bool:
    """Whether a label map may lie on an image: all that its name says of where it lies, the image's says too."""
    same = all(
        image.entities.get(key) == value for key, value in label.entities.items() if key not in (*KINDS, "space")
    )
    return same and image.visit == label.visit and space_of(label, image) == space_of(image, image)


def in_one_place(labels: Sequence[BidsFile], fitting: dict[Path, list[BidsFile]], root: Path) -> list[BidsFile]:
    """The label maps in the subjects' own spaces, if there are any; else those in the one other space."""
    places = {label.path: space_of(label, fitting[label.path][0]) for label in labels}
    own = [label for label in labels if places[label.path][0] is None]
    known = sorted({"_".join(filter(None, place)) for place in places.values()})
    if not own and len(known) > 1:
        raise ValueError(
            f"label maps in {root} lie in several spaces, {', '.join(known)}: choose one, as by --modality "
            f"space-{places[labels[0].path][0]}"
        )
    return own or list(labels)


def check_one_kind(labels: Sequence[BidsFile], root: Path) -> None:
    """ValueError for label maps of several kinds or pipelines, whose values mean different structures."""
    first: dict[str, BidsFile] = {}
    for label in labels:
        first.setdefault(label.whole_kind, label)
    if len(first) > 1:
        kinds = ", ".join(sorted(first))
        raise ValueError(
            f"several kinds of label maps in {root} fit equally well: {kinds}, for example "
            f"{examples([label.path.name for label in first.values()])}; choose one, as by --label_map {min(first)}"
        )


def nearest(label: BidsFile, images: Sequence[BidsFile]) -> BidsFile:
    """The image that a label map was drawn on: of the same pipeline if there is one, with the fewest other entities."""

    def rank(image: BidsFile) -> tuple[bool, bool, int, int]:
        """Small is near."""
        more = set(image.entities) - set(label.entities) - {"desc"}
        said = DESCRIPTIONS.get(image.entities.get("desc"), 2)
        return image.pipeline != label.pipeline, image.pipeline != "", len(more), said

    best, *others = sorted(images, key=rank)
    if others and rank(others[0]) == rank(best):
        raise alike(best, others[0], f"images for {label.path.name}", "--modality")
    return best


def alike(one: BidsFile, other: BidsFile, what: str, option: str) -> ValueError:
    """The error for two files of which nothing says which one counts."""
    words = sorted(other.words - one.words) or sorted(one.words - other.words)
    how = f"choose one, as by {option} {words[0]}" if words else "remove one"
    return ValueError(f"two {what} fit equally well, {one.path} and {other.path}: {how}")


def without_space(suffix: str, files: Sequence[BidsFile], labels: Sequence[BidsFile]) -> list[str]:
    """A remark where label maps do not say on which of a subject's images they lie, and the first kind is not meant."""
    silent = [label.path.name for label in labels if "space" not in label.entities]
    if suffix == IMAGES[0] or not silent or not any(file.suffix == IMAGES[0] for file in files):
        return []
    return [
        f"{len(silent)} label maps name no space, as {silent[0]}, and are taken to lie on {suffix}: if they lie on "
        f"{IMAGES[0]}, as fMRIPrep's do, leave --modality out"
    ]


def left_out(
    images: Sequence[BidsFile], labels: Sequence[BidsFile], joint: Sequence[BidsFile], used: Sequence[BidsFile]
) -> list[str]:
    """Remarks on visits that do not count, and why: no label map, no image, or both in another space."""
    done, both = {file.visit for file in used}, {file.visit for file in joint}
    elsewhere = {file.visit: file.path.name for file in joint if file.visit not in done}
    remarks = [f"{len(elsewhere)} left out, in another space: {some(elsewhere)}"] if elsewhere else []
    for files, lacking in ((images, "a label map"), (labels, "an image")):
        bare = {file.visit: file.path.name for file in files if file.visit not in both}
        if bare:
            where = f"without {lacking} of the same subject, session and space"
            remarks.append(f"{len(bare)} left out, {where}: {some(bare)}")
    return remarks


def some(names: dict[tuple[str, str], str]) -> str:
    """Examples of files, by visit."""
    return examples([name for _, name in sorted(names.items())])


def not_understood(files: Sequence[Path]) -> list[str]:
    """A remark on files whose names BIDS does not know."""
    names = examples([file.name for file in files])
    return [f"{len(files)} files left out, whose names are none of BIDS: {names}"] if files else []
