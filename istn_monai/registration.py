"""Registration of single pairs from Python and from the command line, with the bundle's own configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from istn_monai.directions import check_invertible
from istn_monai.folders import bundle_folder, is_bundle
from istn_monai.geometry.grids import Grid
from istn_monai.inferer import guided_arguments, kept_start
from istn_monai.io.images import write_image
from istn_monai.io.nifti import check_written_suffix
from istn_monai.io.paths import absolute, check_apart, checked_overwrite, new_file
from istn_monai.moved_points import check_points
from istn_monai.network_settings import NetworkSettings, finest
from istn_monai.options import typed_settings
from istn_monai.processors import keep_memory
from istn_monai.runs import checkpoint_of, overlay, settings_of_weights
from istn_monai.transforms.guidance import batched
from istn_monai.transforms.inverses import NotInvertible
from istn_monai.transforms.keys import PAIR_KEYS, POINT_KEYS
from istn_monai.transforms.postprocessing import Representd
from istn_monai.weights import Weights, read_weights, warn_if_untrained
from istn_monai.workflow.cohorts import Cohort
from istn_monai.workflow.console import begin_pair, refining
from istn_monai.workflow.datasets import pair_item
from istn_monai.workflow.distributed import process_device, world_size
from istn_monai.workflow.pair_files import check_used, guides_of, pairs_of
from istn_monai.workflow.provenance import weights_hash
from istn_monai.workflow.representations import placed
from istn_monai.workflow.results import SavePairHandler, check_pair_files
from istn_monai.workflow.settings import (
    check_guides_count,
    check_settings,
    check_similarity,
    registered_as,
    steps_of,
)

RESULTS = (
    "warped", "warped_label", "displacement", "moving_representation", "fixed_representation", "pred", "theta",
    "initial_alignment",
)  # fmt: skip
NOTHING_SOUGHT = "no spatial transformer, no refinement: this is the initial alignment alone; give refine_steps above 0"
NOTHING_FOUND = (
    "the refinement found nothing better than its start, so this is the initial alignment alone: unless that is right, "
    "give a lower refine_learning_rate, other refine_levels, or another initial_alignment"
)


class Registration:
    """The bundle's registration, loaded once, for any number of pairs.

    The weights know the settings that they were trained with; none of these need be given. The process keeps some of
    the memory that it frees from then on, see :func:`istn_monai.processors.keep_memory`.

    Args:
        model: folder of a training run or of a bundle, or a checkpoint; None for the shipped weights;
            "any_contrast" for further ones, of any contrast; "intensities" for no network at all: affine and B-splines
            of the images, or any other transformation; "intensities_2d" for the same in 2-D.
        refine_steps: number of steps of test-time refinement; 0 takes the network's one-pass prediction; None as many
            as the weights say, or 25.
        config: JSON file with further settings.
        bundle_root: folder of the bundle whose configs are used; None for that of ``model``, or else the package's.
        settings: overrides, by the bundle's names, such as ``initial_alignment``, ``spatial_size`` or ``device``.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: naming the setting, if it is unknown or contradicts the weights.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        refine_steps: int | None = None,
        config: str | Path | None = None,
        bundle_root: str | Path | None = None,
        **settings: Any,
    ) -> None:
        settings = typed_settings("register", settings | {"refine_steps": refine_steps})
        refine_steps = settings.pop("refine_steps")
        file = checkpoint_of(model, config, bundle_root, settings)
        settings = settings_of_weights(file, refine_steps, config, settings) | settings
        bundle_root = model if bundle_root is None and model is not None and is_bundle(model) else bundle_root
        steps = steps_of(refine_steps, settings)
        self.arguments = (model, refine_steps, config, bundle_root, settings)
        folder = bundle_folder(bundle_root)
        names = ["inference", "refine"] if steps else ["inference"]
        self.parser = ConfigParser()
        self.parser.read_config([str(folder / "configs" / f"{name}.json") for name in names] + overlay(config))
        device = {"device": process_device()} if world_size() > 1 else {}
        self.parser.update({"bundle_root": str(folder), "refine_steps": steps} | device | settings)
        check_settings(self.parser)
        #: of the terms of the refinement; None for the paper's objective
        self.term_weights: dict[str, float] | None = self.content("term_weights")
        check_guides_count(steps, self.term_weights)
        self.representation = registered_as(self.content("representation"), self.term_weights)
        weights = read_weights(self.content("checkpoint_file"))
        self.settings: NetworkSettings = self.content("settings")
        check_similarity(settings.get("initial_similarity"), self.settings.initial_alignment)
        self.device = torch.device(self.content("device"))
        self.network = self.network_of(weights)
        check_invertible(self.network.istn.transformation, self.content("symmetric"))
        self.qa = bool(self.content("qa"))
        self.overwrite = checked_overwrite(self.parser.get("overwrite", False))
        self.weights_sha256 = weights_hash(self.network.state_dict())
        #: files that are read for each pair, by what errors call them
        self.read = {"checkpoint_file": self.content("checkpoint_file")} | ({"config": config} if config else {})
        self.content("preprocessing"), self.content("inferer")  # made here, so that no pair waits for them
        warn_if_untrained(weights)
        keep_memory()

    sought = True  #: whether a transformation is looked for

    def __reduce__(self) -> tuple[Callable[..., Registration], tuple[()]]:
        """Copies and other processes load the weights again: a parsed configuration holds modules and functions."""
        model, steps, config, bundle_root, settings = self.arguments
        return partial(Registration, model, steps, config, bundle_root, **settings), ()

    def network_of(self, weights: Weights) -> Any:
        """The configuration's network, with weights."""
        with torch.inference_mode(False):  # refinement differentiates through the network
            network = self.content("network").eval()
            weights.load_into(network)
        return network

    def content(self, name: str) -> Any:
        """What an entry of the configuration stands for."""
        return self.parser.get_parsed_content(name)

    def __call__(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """Registers one pair.

        Args:
            pair: ``moving_image``, ``fixed_image`` and, if there are, ``moving_label``, ``fixed_label``,
                ``moving_mask``, ``fixed_mask``, ``moving_maps`` and ``fixed_maps``: files, or channel-first MetaTensors
                whose affine is RAS mm; and ``moving_points`` and ``fixed_points``, files of landmarks.

        Returns:
            All that the bundle's pre- and postprocessing made of it: ``warped``, ``pred``, ``theta`` ...
        """
        with torch.inference_mode(False), torch.no_grad():  # refinement differentiates what is made here
            return self.content("postprocessing")(self.registered(pair))

    def registered(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`__call__`, without the postprocessing: the pair on its registration grid, and ``pred``."""
        with torch.inference_mode(False), torch.no_grad():
            data = self.content("preprocessing")(pair)
            self.warn_of_spacing(Grid.of(data["fixed_image_original"]))
            image = convert_to_tensor(data["image"], track_meta=False)[None].to(self.device)
            inferer = self.content("inferer")
            guided = guided_arguments(inferer, batched(data))
            pred = inferer(image.clone() if image.is_inference() else image, self.network, **guided)
            result = data | {"pred": decollate_batch(pred)[0]}
            if self.sought and self.settings.starts_at_identity and kept_start(result["pred"]):
                warnings.warn(NOTHING_FOUND if self.parser.get("refine_steps") else NOTHING_SOUGHT, stacklevel=2)
            return result

    def warn_of_spacing(self, fixed: Grid) -> None:
        """A warning where no network is used, and the fixed image has much larger or smaller voxels than the grid."""
        own, spacing = min(fixed.spacing), finest(self.settings.spacing)
        if self.settings.network_free and not spacing / 2 <= own < spacing * 3:
            warnings.warn(
                f"fixed_image has voxels of {own:.3g} mm, and is registered in voxels of {spacing:g} mm: spacing "
                f"{own:.3g} would be its own, and control spacings follow",
                stacklevel=3,
            )

    def represented(self, pair: Mapping[str, Any], world: str = "own") -> dict[str, Any]:
        """M' and F' of one pair, for another engine, see docs/engines.md; a refinement changes neither.

        Args:
            pair: see :meth:`__call__`.
            world: where ``moving_representation`` lies: "own", in that of the moving image's file, from which
                ``initial_alignment`` leads to the fixed one; or "aligned", moved by it.

        Returns:
            The pair, ``moving_representation`` and ``fixed_representation`` ``(K, *S)``, and ``initial_alignment``, T0:
            fixed to moving world points, RAS mm.
        """
        data: Any = self.registered(pair)
        return placed(Representd(self.network)(data), world)

    @property
    def guides(self) -> tuple[str, ...]:
        """Keys of a pair that count besides the images and the moving label."""
        return guides_of(self.term_weights, self.representation.source)

    def saver(self, output_dir: str | Path, inverse: bool = False) -> SavePairHandler:
        """What writes the results of a pair to a folder, as the bundle does."""
        return SavePairHandler(
            output_dir, self.network, self.content("saver#options"), self.network.istn.transformation, inverse, self.qa,
            self.settings.mask_labels, self.overwrite, self.weights_sha256, bool(self.content("jacobian")),
        )  # fmt: skip

    def save(self, result: dict[str, Any], output_dir: str | Path, inverse: bool = False) -> None:
        """Writes what :meth:`__call__` gave, as the bundle does."""
        self.saver(output_dir, inverse).save(result, convert_to_tensor(result["pred"], track_meta=False))


class RegisterISTNd(MapTransform, NotInvertible):
    """Registers the pair in a dictionary, in any ``Compose``: loaded before by ``LoadImaged``, or still paths.

    Adds to it what ``RESULTS`` names: ``warped`` (the moving image on the fixed image's own grid, in its own dtype),
    ``warped_label``, ``displacement`` ``(D, *fixed)`` (mm, RAS, from fixed to moving points), both representations and
    ``pred`` (the ddf) on the registration grid, ``theta``, and ``initial_alignment`` (fixed to moving world, RAS).

    Of a dictionary with ``moving_mask``, ``fixed_mask``, and, with ``use_labels`` or ``use_points``, ``fixed_label``,
    ``moving_points`` and ``fixed_points``, these count as well, see :class:`Registration`.

    Args:
        moving: key of the image to be warped: a path, or a channel-first MetaTensor.
        fixed: key of the image that it is warped to.
        moving_label: key of a label map that is warped along, if the dictionary has it.
        model: see :class:`Registration`.
        refine_steps: likewise.
        keys: all three keys at once, or the first two, in this order, as MONAI's other transforms have them.
        settings: likewise.

    Examples:
        >>> from monai.data import MetaTensor
        >>> image = torch.zeros(1, 40, 50, 40)
        >>> image[:, 14:26, 18:32, 15:24] = 1
        >>> register = RegisterISTNd("atlas", "patient", refine_steps=0, device="cpu")
        >>> result = register({"atlas": MetaTensor(image), "patient": MetaTensor(image.roll(2, 1))})
        >>> result["warped"].shape, result["displacement"].shape
        (torch.Size([1, 40, 50, 40]), torch.Size([3, 40, 50, 40]))
    """

    def __init__(
        self,
        moving: str = "moving_image",
        fixed: str = "fixed_image",
        moving_label: str = "moving_label",
        model: str | Path | None = None,
        refine_steps: int | None = None,
        keys: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        if keys is not None and (isinstance(keys, str) or len(keys) not in (2, 3)):
            raise ValueError(f"keys must be those of moving image, fixed image and moving label, got {keys!r}")
        keys = (moving, fixed, moving_label) if keys is None else (*keys, moving_label)[:3]
        super().__init__(keys, allow_missing_keys=True)
        self.names = dict(zip(PAIR_KEYS[:3], map(str, self.keys), strict=True))
        self.registration = Registration(model, refine_steps, **settings)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.keys[:2]:
            if key not in data:
                raise KeyError(f"the pair has no {key!r}, only {sorted(map(str, data))}")
        names = {key: key for key in self.registration.guides} | self.names
        result = self.registration({name: data[key] for name, key in names.items() if key in data})
        return dict(data) | {name: result[name] for name in RESULTS if name in result}


def register_files(
    registration: Registration, output_dir: str | Path, inverse: bool = False, wait: bool = True, **files: str | None
) -> bool:
    """Registers one pair of files into a folder, unless their result is there already.

    Args:
        registration: with weights and options.
        output_dir: folder for the results.
        inverse: also writes the transform from moving to fixed points.
        wait: for another process that writes to the folder.
        files: ``moving_image``, ``fixed_image`` and, if there are, labels, masks and landmarks of either; landmarks are
            moved along, see :mod:`istn_monai.moved_points`.

    Returns:
        Whether there was anything to do.

    Raises:
        FileExistsError: if another result is there, without the setting ``overwrite``; or a file that is no result.
        InUse: if another process writes to the folder, without ``wait``.
    """
    saver = registration.saver(output_dir, inverse)
    check_pair_files(output_dir, saver.results, **files)
    check_used(files, registration.term_weights, registration.representation.source)
    check_apart(saver.results.files, registration.read.items())
    points = {key: file for key, file in files.items() if file and key in POINT_KEYS}
    check_points(points, registration.settings.spatial_dims)
    with saver.results.locked(wait):
        if saver.finished(files):
            return False
        inferer = registration.content("inferer")
        begin_pair(files, inferer, registration.device)
        with refining(inferer):
            result = registration({key: file for key, file in files.items() if file})
        saver.save(result, convert_to_tensor(result["pred"], track_meta=False))
    return True


def register_datalist(
    registration: Registration, datalist: str | Path, split: str, output_dir: str | Path, inverse: bool = False
) -> list[str]:
    """Registers the pairs of one split of a datalist into ``pair_0000``, ``pair_0001`` ...; goes on after a failure.

    Pairs that were registered before, of the same files with the same weights and options, are left as they are. All QA
    pages are in one ``qa.html``, with the pairs that failed, which ``failures.json`` lists. Of several processes
    (``torchrun -m istn_monai register ...``) split the pairs among themselves; the first writes that page.

    Returns:
        A line for each pair that failed, in each process.

    Raises:
        FileExistsError: before any work, if a result would replace an input, a file of others, or, without the setting
            ``overwrite``, another result.
    """
    pairs = pairs_of(datalist, split, registration.guides)
    cohort = Cohort(output_dir, pairs, registration.qa, registration.overwrite)
    cohort.check(lambda folder: registration.saver(folder, inverse), registration.read | {"datalist": datalist})

    def register(number: int, wait: bool) -> bool:
        """Registers one pair of the cohort."""
        folder = cohort.folder / cohort.name(number)
        return register_files(registration, folder, inverse, wait, **cohort.pairs[number])

    return cohort.run(register)


def represent_file(registration: Registration, image: str, output: str | Path) -> Path:
    """Writes the representation of one image, on its registration grid."""
    path = new_file(output, overwrite=registration.overwrite)
    check_written_suffix(path)
    if not absolute(image).exists():
        raise FileNotFoundError(f"image: no such file: {image}")
    check_apart([path], [("image", image), *registration.read.items()], "choose another output")
    if registration.representation.source in ("labels", "file"):
        raise ValueError(f"representation {registration.representation.source} is given, not made of an image")
    data: Any = registration.registered(pair_item(image, image))
    write_image(Representd(registration.network)(data)["fixed_representation"], path)
    return path
