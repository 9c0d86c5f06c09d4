"""Command line: ``istn-monai COMMAND --help`` (or ``python -m istn_monai COMMAND --help``).

Commands import what they use when they run: ``--help`` and ``--version`` need neither torch nor MONAI. Those that need
no network are in :mod:`istn_monai.file_commands`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire

from istn_monai import __version__
from istn_monai.arguments import FLAGS, checked_arguments, help_of
from istn_monai.file_commands import apply, compose, info, pairs, synthesize
from istn_monai.options import command, unknown
from istn_monai.pace import OUTPUT, tell
from istn_monai.processors import load_libraries
from istn_monai.workflow.errors import ending_in_one_line


@command()
def plan(
    data: str,
    output: str | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
    *,
    modality: str | None = None,
    label_map: str | None = None,
) -> str:
    """Reads the fingerprint of a data set and writes settings for it, each with its reason.

    Args:
        data: folder with images and labels (or landmarks), of nnU-Net, of the Decathlon or of BIDS; or a datalist
            (.json).
        output: JSON file to write; by default NAME_plan.json in the current folder.
        overwrite: replace an existing plan.
        nifti_frame: what counts where readers understand a NIfTI header in two ways: itk, sform or qform.
        modality: the image that counts where subjects have several: of nnU-Net a channel by number or name (default 0),
            of BIDS a suffix or entities, such as T2w (default T1w).
        label_map: likewise the label map of BIDS: entities, a pipeline, or both, such as fmriprep/desc-aseg.
    """
    tell(f"planning a training on {data}")  # to load what reads images takes its time
    load_libraries()
    from istn_monai.io.subject_files import Selection
    from istn_monai.planning.plan import write_plan

    made, file = write_plan(data, output, overwrite, nifti_frame, Selection(modality, label_map))
    return f"{made.table()}\nwritten: {file}; train with: istn-monai train {file}"


@command("train")
def train(
    data: str,
    bundle_root: str | None = None,
    dry_run: bool = False,
    *,
    modality: str | None = None,
    label_map: str | None = None,
    **settings: Any,
) -> str:
    """Trains a network on annotated pairs; an interrupted training goes on when the command is repeated.

    Writes runs/NAME_LOSS_TRANSFORMATION/ with models/model.pt (best validation), models/last.pt, training.png,
    training.log and tensorboard/.

    Args:
        data: a plan (.json); or a folder or datalist, for which a plan is made first.
        bundle_root: folder of the bundle; the package's own by default.
        dry_run: check data and settings, say what would be done, and train nothing.
        modality: the image that counts, as of plan, where a folder's subjects have several.
        label_map: likewise the label map.
    """
    load_libraries()
    from istn_monai.folders import bundle_folder
    from istn_monai.io.subject_files import Selection
    from istn_monai.planning.plan import plan_of
    from istn_monai.runs import train_network

    with tempfile.TemporaryDirectory() as folder:
        selection = Selection(modality, label_map)
        plan = plan_of(data, settings.get("nifti_frame"), folder if dry_run else None, selection)
        train_network(bundle_folder(bundle_root), plan, dry_run, **settings)
    return "dry run: nothing was trained" if dry_run else "trained; evaluate with: istn-monai evaluate"


@command("evaluate")
def evaluate(
    data: str | None = None,
    output_dir: str | None = None,
    model: str | None = None,
    refine_steps: int | None = None,
    config: str | None = None,
    bundle_root: str | None = None,
    **settings: Any,
) -> str:
    """Evaluates a network on annotated pairs: Dice, surface distances, folding, before and after registration.

    DATA and OUTPUT_DIR may stand first, in this order and without their names: istn-monai evaluate pairs.json results.

    Args:
        data: datalist (.json); by default the one that the model was trained on.
        output_dir: folder for evaluation.csv, evaluation.json and qa.html; by default that of the training run.
        model: folder of a training run or of a bundle, or a checkpoint; by default the latest run in runs/, or, with
            data, the shipped weights.
        refine_steps: number of steps of test-time refinement; 0 for none; by default as many as the weights
            say, or 25.
        config: JSON file with further settings.
        bundle_root: folder of the bundle; the package's own by default.
    """
    load_libraries()
    from istn_monai.folders import bundle_folder, to_evaluate
    from istn_monai.runs import evaluate_datalist

    file, datalist, folder = to_evaluate(data, model, output_dir, settings.pop("ckpt_dir", None))
    evaluate_datalist(bundle_folder(bundle_root), datalist, folder, file, refine_steps, config, **settings)
    return "look at the worst pairs first, on top of qa.html" if settings.get("qa", True) else "evaluated"


@command("register")
def register(
    moving: str,
    fixed: str | None = None,
    output_dir: str = "registration",
    moving_label: str | None = None,
    model: str | None = None,
    refine_steps: int | None = None,
    inverse: bool = False,
    split: str = "testing",
    config: str | None = None,
    bundle_root: str | None = None,
    *,
    fixed_label: str | None = None,
    moving_mask: str | None = None,
    fixed_mask: str | None = None,
    moving_points: str | None = None,
    fixed_points: str | None = None,
    moving_maps: str | None = None,
    fixed_maps: str | None = None,
    engine: str = "istn",
    world: str | None = None,
    **settings: Any,
) -> str:
    """Registers two images, or all pairs of a datalist; no annotation is needed.

    Writes for each pair warped.nii.gz (the moving image on the fixed image's own grid), transform.h5 and
    displacement.nii.gz (fixed to moving points; open in ITK, 3D Slicer, ANTs), both representations, report.json, and
    qa.png and view.html, which show how well it went; of a datalist also qa.html with all of these.

    Args:
        moving: image to be warped; or a datalist (.json), whose pairs go to output_dir/pair_0000 and so on.
        fixed: image that it is warped to.
        output_dir: folder for results.
        moving_label: label map that is warped along.
        model: folder of a run or a bundle, a checkpoint, any_contrast, intensities or intensities_2d; the shipped
            weights by default.
        refine_steps: number of steps of test-time refinement; 0 takes the network's prediction; by default as
            many as the weights say, or 25.
        inverse: also write inverse_transform.h5, moving to fixed points.
        split: of a datalist.
        config: JSON file with further settings.
        bundle_root: folder of the bundle; that of the model, or the package's own, by default.
        fixed_label: label map of the fixed image, for use_labels.
        moving_mask: map of whole numbers on the moving image's grid; where it is 0, the image does not count.
        fixed_mask: likewise, of the fixed image.
        moving_points: landmarks (.csv, .fcsv, .mrk.json) that are moved along; for use_points, too.
        fixed_points: landmarks whose distance from the moved ones is reported; for use_points, too.
        moving_maps: maps of the moving image for representation file, such as probabilities of structures.
        fixed_maps: likewise, of the fixed image.
        engine: istn; or none, which registers nothing and writes the channels of both representations,
            moving_0000.nii.gz ..., and initial.tfm, for ANTs, elastix or greedy.
        world: of engine none: own, M' lies where the moving image lies; or aligned, moved by initial.tfm.
    """
    load_libraries(short=True)
    from istn_monai.engines import registration_by

    if fixed is None and not str(moving).endswith(".json"):
        raise ValueError("fixed is not set: give two images, or one datalist (.json)")
    others: dict[str, Any] = dict(
        moving_label=moving_label, fixed_label=fixed_label, moving_mask=moving_mask, fixed_mask=fixed_mask,
        moving_points=moving_points, fixed_points=fixed_points, moving_maps=moving_maps, fixed_maps=fixed_maps,
    )  # fmt: skip
    if fixed is None and (given := [name for name, file in others.items() if file is not None]):
        raise ValueError(f"{given[0]} is for two images: the pairs of a datalist have their own, by the same key")
    options = others | {"inverse": inverse, "refine_steps": refine_steps}
    registration = registration_by(engine, world, options, model, config, bundle_root, **settings)
    return carried_out(registration, moving, fixed, output_dir, inverse, split, others)


def carried_out(
    registration: Any,
    moving: str,
    fixed: str | None,
    output_dir: str,
    inverse: bool,
    split: str,
    others: dict[str, Any],
) -> str:
    """Registers two images, ``others`` of their files with them, or a datalist; see :func:`register`."""
    from istn_monai.registration import register_datalist, register_files
    from istn_monai.workflow.distributed import connected

    folder = Path(output_dir).expanduser().absolute()
    if fixed is not None:
        done = register_files(registration, output_dir, inverse, moving_image=moving, fixed_image=fixed, **others)
        return f"written: {folder}" if done else f"registered before, of these files, weights and options: {folder}"
    with connected():
        if failures := register_datalist(registration, moving, split, output_dir, inverse):
            raise ValueError("\n".join([f"{len(failures)} pairs failed:", *failures]))
    return f"written: {folder}"


@command("represent")
def represent(
    image: str,
    output: str,
    model: str | None = None,
    config: str | None = None,
    bundle_root: str | None = None,
    **settings: Any,
) -> str:
    """Writes the representation that the network makes of one image, for registration by another tool.

    Args:
        image: any image of the kind that the network was trained on.
        output: NIfTI file to write, on the registration grid; an existing one is left alone.
        model: folder of a training run or of a bundle, or a checkpoint; the shipped weights by default.
        config: JSON file with further settings.
        bundle_root: folder of the bundle; that of the model, or the package's own, by default.
    """
    load_libraries()
    from istn_monai.registration import Registration, represent_file

    return f"written: {represent_file(Registration(model, 0, config, bundle_root, **settings), image, output)}"


@command()
def learn2reg(
    registered: str, output: str, data: str | None = None, split: str = "testing", overwrite: bool = False
) -> str:
    """Writes registered pairs as a submission to Learn2Reg, disp_FIXED_MOVING.nii.gz; with data also its metrics.

    Args:
        registered: output_dir of register, for a *_dataset.json.
        output: folder for the displacements; to be zipped.
        data: the *_dataset.json, whose pairs are then compared as the challenge does it, in OUTPUT.json.
        split: of data; registration_test are the test pairs, whose annotations the challenge keeps to itself.
        overwrite: replace displacements and metrics that are there.
    """
    load_libraries()
    from istn_monai.workflow.learn2reg import export, measure

    folder = Path(output).expanduser().absolute()
    files = export(registered, folder, overwrite)
    found = "" if data is None else measure(data, split, folder, overwrite) + "\n"
    return f"{found}written: {len(files)} displacements in {folder}"


COMMANDS: dict[str, Callable[..., str]] = {
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "register": register,
    "apply": apply,
    "compose": compose,
    "represent": represent,
    "learn2reg": learn2reg,
    "info": info,
    "pairs": pairs,
    "synthesize": synthesize,
}


def run(words: Sequence[str]) -> None:
    """Runs the command that these words are."""
    if not words or words[0].startswith("-") or {"--help", "-h"} & set(words):
        if words and words[0] in COMMANDS:
            print(help_of(words[0], COMMANDS[words[0]]))
        elif list(words) in ([], ["--help"], ["-h"], ["--", "--help"]):
            fire.Fire(COMMANDS, ["--", "--help"], name="istn-monai")
        else:
            raise unknown("command", words[0], COMMANDS)
        return
    name, *rest = words
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    fire.Fire({name: COMMANDS[name]}, [name, *checked_arguments(COMMANDS[name], rest)], name="istn-monai")


def main() -> None:
    """Runs a command; a failure is one line and exit code 1, and with ``--debug`` the traceback too.

    ``--quiet`` leaves out all but errors and the last line, ``--verbose`` shows what MONAI's engines log, too.
    """
    words = [word for word in sys.argv[1:] if word not in FLAGS]
    for flag in ("--quiet", "--verbose"):
        if flag in sys.argv:
            os.environ[OUTPUT] = flag.removeprefix("--")
    if words == ["--version"]:
        print(f"istn-monai {__version__}")
        return
    with ending_in_one_line("istn-monai", debug="--debug" in sys.argv):
        run(words)


if __name__ == "__main__":
    main()
