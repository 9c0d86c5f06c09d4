"""Where things lie: the bundle, training runs, and the checkpoint that a user means. Needs neither torch nor MONAI."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

from istn_monai.io.paths import replacing

BEST, LAST, RUN = "model.pt", "last.pt", "run.json"
TRANSFORM = "transform.h5"  #: of a registered pair, in the folder of its results
INTENSITIES = "intensities"  #: the word for no network, and the name of the file that says so
#: weights that ship with the bundle beside its ``model.pt``, by the names of their files
SHIPPED = (INTENSITIES, "intensities_2d", "any_contrast")
#: in a folder, where the weights may be: of checkpoints, of a training run, of a bundle
PLACES = (BEST, f"models/{BEST}")


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of a bundle."""
    return (Path(folder).expanduser() / "configs" / "inference.json").is_file()


def bundle_folder(bundle_root: str | os.PathLike | None = None) -> Path:
    """The bundle's folder: the one that is given, the one installed with the package, or the checkout's.

    Raises:
        FileNotFoundError: if there is none.
    """
    package = Path(__file__).resolve().parent
    given = [] if bundle_root is None else [Path(bundle_root).expanduser().absolute()]
    folders = given or [package / "bundle", package.parent / "bundle"]
    for folder in folders:
        if is_bundle(folder):
            return folder
    raise FileNotFoundError(f"no bundle (configs/inference.json) in {' or '.join(map(str, folders))}: give bundle_root")


def find_weights(model: str | os.PathLike) -> Path:
    """The checkpoint that a user means: a file, or a folder of a run, of checkpoints, or of a bundle.

    Words stand for further weights of the bundle: "intensities", and "intensities_2d", for none, a registration of the
    images themselves, see :class:`istn_monai.stn.IdentitySTN`; "any_contrast" for those that were trained on random
    contrasts.

    Raises:
        FileNotFoundError: naming what was looked for.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model must be the path of a checkpoint or a folder, got {model!r}")
    if str(model) in SHIPPED:
        return bundle_folder() / "models" / f"{model}.pt"
    path = Path(model).expanduser().absolute()
    if path.is_file():
        return path
    if not path.exists():
        close = difflib.get_close_matches(str(model), SHIPPED, n=1)
        hint = f"did you mean {close[0]!r}? Or " if close else ""
        raise FileNotFoundError(
            f"model: no such file or folder: {path}; {hint}train first, or give a folder with {BEST}"
        )
    for place in PLACES:
        if (path / place).is_file():
            return path / place
    raise FileNotFoundError(f"model: no {' or '.join(PLACES)} in {path}: give the folder of a training run or a bundle")


def latest_run(folder: str | os.PathLike = "runs") -> Path:
    """The checkpoint of the training run that improved last.

    Raises:
        FileNotFoundError: if there is no run.
    """
    files = sorted(Path(folder).glob(f"*/models/{BEST}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no training run in {Path(folder).absolute()}: train first, or give model and data")
    return files[-1].absolute()


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the training run that a checkpoint lies in; None if it does not."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "models" and (folder / RUN).is_file() else None


def write_run(folder: str | os.PathLike, datalist: str | os.PathLike) -> Path:
    """Notes in a run's folder what its data are."""
    path = Path(folder).expanduser() / RUN
    with replacing(path) as part:
        part.write_text(json.dumps({"datalist": str(Path(datalist).absolute())}, indent=1), encoding="utf-8")
    return path


def datalist_of(file: Path) -> str:
    """What :func:`write_run` noted; ValueError naming the file if it did not."""
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): give a datalist to evaluate on") from error
    if not isinstance(noted, dict) or not isinstance(noted.get("datalist"), str):
        raise ValueError(f"{file} does not say the datalist of the training: give a datalist to evaluate on")
    return noted["datalist"]


def to_evaluate(
    data: str | None, model: str | None, output_dir: str | None, ckpt_dir: str | None = None
) -> tuple[Path, Path, Path]:
    """The checkpoint, the datalist and the output folder of an evaluation, from what a user says of them.

    Args:
        data: datalist; None is the one that the model was trained on.
        model: see :func:`find_weights`; None is the latest run, or, with data, the shipped weights.
        output_dir: None is the folder of the run, or ``evaluation``.
        ckpt_dir: folder of the checkpoint, in the place of ``model``.

    Raises:
        FileNotFoundError: if one of them cannot be known.
    """
    model = ckpt_dir if model is None else model
    if model is None:
        file = latest_run() if data is None else find_weights(bundle_folder())
    else:
        file = find_weights(model)
    run = run_of(file)
    if data is None:
        if run is None:
            raise FileNotFoundError(f"{file} does not say what it was trained on: give a datalist to evaluate on")
        data = datalist_of(run / RUN)
    folder = Path("evaluation" if run is None else run) if output_dir is None else Path(output_dir)
    return file, Path(data).expanduser(), folder.expanduser().absolute()
