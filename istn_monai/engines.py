"""Which engine registers: this package's, or none, where another tool is to register the representations.

The other tools, and how what they find is joined and applied, are in ``docs/engines.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from istn_monai.registration import Registration
from istn_monai.representations import Representation
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, MAP_KEYS, MASK_KEYS
from istn_monai.workflow.representations import SaveRepresentationsHandler

ENGINES = {"istn": "this package's registration", "none": "none: M' and F' are written for another tool"}
DEFAULTS = {"inverse": False}  # of the command's options that are not None
#: what else of a pair representations are made of, by their source
MADE_OF = {"labels": LABEL_KEYS, "file": MAP_KEYS}
#: what counts for nothing where nothing is registered
OF_REGISTRATION = {
    "inverse", "qa", "both_ways", "jacobian", "symmetric", "use_labels", "use_points", "refine_steps",
    "refine_learning_rate", "refine_levels", "refine_weights", "moving_label", "fixed_label",
    "moving_points", "fixed_points", "moving_maps", "fixed_maps",
}  # fmt: skip


class Representing(Registration):
    """Represents pairs and registers none: what :func:`istn_monai.registration.register_files` takes for "none".

    Args:
        model: see :class:`istn_monai.Registration`.
        config: likewise.
        bundle_root: likewise.
        world: where M' lies, see :mod:`istn_monai.workflow.representations`.
        settings: likewise.
    """

    sought = False

    def __init__(
        self,
        model: str | Path | None = None,
        config: str | Path | None = None,
        bundle_root: str | Path | None = None,
        world: str = "own",
        **settings: Any,
    ) -> None:
        super().__init__(model, 0, config, bundle_root, **settings)
        self.world, self.qa = world, False

    def __reduce__(self) -> tuple[Callable[..., Registration], tuple[()]]:
        """See :meth:`istn_monai.Registration.__reduce__`."""
        model, _, config, bundle_root, settings = self.arguments
        return partial(Representing, model, config, bundle_root, self.world, **settings), ()

    def __call__(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """The pair and its representations; of its files the images count, and what these are made of."""
        return self.represented({key: pair[key] for key in self.counting if key in pair}, self.world)

    @property
    def counting(self) -> tuple[str, ...]:
        """Keys of a pair that count."""
        return (*IMAGE_KEYS, *MASK_KEYS, *MADE_OF.get(self.representation.source, ()))

    @property
    def guides(self) -> tuple[str, ...]:
        """Those of them that are no images."""
        return self.counting[len(IMAGE_KEYS) :]

    def saver(self, output_dir: str | Path, inverse: bool = False) -> SaveRepresentationsHandler:
        """What writes the representations to a folder; there is no inverse."""
        options = self.content("saver#options")
        return SaveRepresentationsHandler(
            output_dir, self.network, options, self.world, self.overwrite, self.weights_sha256, self.counting
        )


def registration_by(
    engine: str,
    world: str | None,
    options: Mapping[str, Any],
    model: str | Path | None = None,
    config: str | Path | None = None,
    bundle_root: str | Path | None = None,
    **settings: Any,
) -> Registration:
    """The registration, or, of the engine "none", what represents pairs in its place.

    Args:
        engine: one of ``ENGINES``.
        world: of "none" alone: "own" (None) or "aligned".
        options: of the command, besides ``settings``, with ``refine_steps``.
        model: see :class:`istn_monai.Registration`.
        config: likewise.
        bundle_root: likewise.
        settings: likewise.

    Raises:
        ValueError: there is no such engine; an option counts for nothing with it.
    """
    if engine not in ENGINES:
        listed = ", ".join(f"{name} ({what})" for name, what in ENGINES.items())
        raise ValueError(
            f"unknown engine {engine!r}: engines are {listed}; how ANTs, elastix, greedy and FireANTs register "
            "representations is in docs/engines.md"
        )
    if engine == "istn":
        if world is not None:
            raise ValueError(f"world {world!r} is of --engine none alone: leave it out")
        return Registration(model, options["refine_steps"], config, bundle_root, **settings)
    given = {name for name, value in options.items() if value is not None and value != DEFAULTS.get(name)}
    given -= set(MADE_OF.get(Representation.of(settings.get("representation")).source, ()))
    useless = sorted(OF_REGISTRATION & {*given, *settings})
    if useless:
        raise ValueError(
            f"{', '.join(useless)} would count for nothing: --engine none registers nothing, and takes the images "
            "and their masks alone; leave it out"
        )
    return Representing(model, config, bundle_root, world or "own", **settings)
