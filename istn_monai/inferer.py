"""Refinement as a MONAI inferer, and what it leaves in the metadata of a displacement field."""

from __future__ import annotations

import inspect
import logging
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from istn_monai.guidance import Guidance, other_way
from istn_monai.levels import Levels
from istn_monai.refinement import RefinementReport, Refiner

logger = logging.getLogger(__name__)
STILL = 1e-6  # voxels, below which nothing has moved
#: of a report: numbers, or a list of them
NUMBERS = tuple(field.name for field in fields(RefinementReport) if field.name != "terms")


def shown(levels: Levels) -> list[tuple[int, ...]]:
    """Levels without what they leave open."""
    return [tuple(number for number in level if number is not None) for level in levels]


class PairRefinement(NamedTuple):
    """What the refinement of one pair left beside its ddf.

    Attributes:
        theta: refined parameters ``(P,)``.
        theta_start: parameters ``(P,)`` before, of one pass of the network.
        report: what the refinement did.
        moving_representation: M' ``(K, *S)``, not warped; None if another inferer did not keep it.
        fixed_representation: F' ``(K, *S)``, likewise.
        back_ddf: ``(D, *S)``, of the pair registered the other way round; None if it was not.
    """

    theta: Tensor
    theta_start: Tensor
    report: RefinementReport
    moving_representation: Tensor | None = None
    fixed_representation: Tensor | None = None
    back_ddf: Tensor | None = None


def refinement_of(pred: Any) -> PairRefinement | None:
    """What :class:`RefineInferer` wrote into the metadata of a ddf; None if a network alone made the ddf.

    Args:
        pred: ``(D, *S)``, the ddf of one pair: an item of the inferer's batch.

    Raises:
        ValueError: the metadata are those of a batch.
    """
    meta = getattr(pred, "meta", {})
    if "refinement" not in meta:
        return None
    theta, theta_start = (torch.as_tensor(meta[name]) for name in ("theta", "theta_start"))
    if theta.ndim != 1:
        raise ValueError(f"pred must be the ddf (D, *S) of one pair, got metadata with theta {tuple(theta.shape)}")
    known = {"levels": ()} | meta["refinement"]  # of an earlier version there are none
    values = {name: torch.as_tensor(known[name]).tolist() for name in NUMBERS}
    terms = {name: tuple(torch.as_tensor(both).tolist()) for name, both in meta["refinement"].get("terms", {}).items()}
    further = (meta.get(name) for name in ("moving_representation", "fixed_representation", "back_ddf"))
    levels = tuple((int(stride), int(steps)) for stride, steps in values["levels"])
    report = RefinementReport(**values | {"trace": tuple(values["trace"]), "terms": terms, "levels": levels})
    return PairRefinement(theta, theta_start, report, *further)


def kept_start(pred: Any) -> bool:
    """Whether a registration that began at the identity is still there: a refinement found nothing better.

    Args:
        pred: as of :func:`refinement_of`.
    """
    found = refinement_of(pred)
    if found is not None and found.report.refined and not found.report.steps:
        return True
    return float(torch.as_tensor(pred).abs().max()) < STILL


def guided_arguments(inferer: Inferer, guidance: Guidance) -> dict[str, Guidance]:
    """What an inferer takes of a pair's guidance: nothing if there is none, or if it knows of none, as MONAI's own."""
    takes = "guidance" in inspect.signature(inferer.__call__).parameters
    return {"guidance": guidance} if guidance and takes else {}


class RefineInferer(Inferer):
    """MONAI inferer that refines the network's prediction at test time; see :class:`Refiner`.

    Takes the place of ``SimpleInferer``, which it equals for 0 steps, and returns the ddf; hosts that pass more
    arguments are served too. The ddf's metadata hold the refined ``theta`` ``(B, P)``, the ``theta_start`` of one pass,
    both representations, and ``refinement``, what :class:`istn_monai.refinement.RefinementReport` says of each pair;
    :func:`refinement_of` reads them.

    Args:
        refiner: None is ``Refiner(**options)``.
        both_ways: also registers each pair the other way round; the metadata then hold the ``back_ddf``, from moving to
            fixed points on the same grid.
        options: arguments of the refiner, e.g. ``steps`` and ``target``.

    Examples:
        >>> from istn_monai import ISTN, STN, AffineTransformation, DisplacementNetwork
        >>> affine = AffineTransformation((16, 20))
        >>> network = DisplacementNetwork(ISTN(None, STN(2, 2, affine), affine))
        >>> ddf = RefineInferer(steps=5)(torch.rand(1, 2, 16, 20), network)
        >>> ddf.shape, ddf.meta["refinement"]["objective_end"] <= ddf.meta["refinement"]["objective_start"]
        (torch.Size([1, 2, 16, 20]), tensor([True]))
    """

    def __init__(self, refiner: Refiner | None = None, both_ways: bool = False, **options: Any) -> None:
        super().__init__()
        if refiner is not None and options:
            raise ValueError(f"give a refiner, or the options of one, not both: got {', '.join(options)}")
        self.both_ways = both_ways
        self.refiner = Refiner(**options) if refiner is None else refiner

    def __repr__(self) -> str:
        """The refiner's main options, for a report."""
        refiner = self.refiner
        weights = "" if refiner.weights is None else f", weights={refiner.weights}"
        rate = f"learning_rate={refiner.learning_rate}"
        levels = "" if refiner.levels is None else f", levels={shown(refiner.levels)}"
        ways = ", symmetric=True" if refiner.symmetric else ""
        ways += ", both_ways=True" if self.both_ways else ""
        return f"RefineInferer(steps={refiner.steps}, target={refiner.target}, {rate}{weights}{levels}{ways})"

    def __call__(
        self, inputs: Tensor, network: nn.Module, *args: Any, guidance: Guidance | None = None, **kwargs: Any
    ) -> Tensor:
        """``(B, 2C, *S)`` and a :class:`istn_monai.DisplacementNetwork` (or ISTN) to the ddf ``(B, D, *S)``.

        Labels, landmarks and masks of the pairs, and maps in the place of the ITN's, come as ``guidance``, see
        :mod:`istn_monai.guidance`.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        network = getattr(network, "module", network)  # of DistributedDataParallel
        istn = getattr(network, "istn", network)
        result = self.refiner(istn, image, guidance)
        reports = [asdict(report) for report in result.reports]
        for report in result.reports:
            logger.info("refined: %s", report.numbers())
        columns: dict[str, Any] = {name: torch.tensor([one[name] for one in reports]) for name in NUMBERS}
        if reports[0]["terms"]:
            columns["terms"] = {
                name: torch.tensor([report["terms"][name] for report in reports]) for name in reports[0]["terms"]
            }
        # a batch's metadata is split along its first axis, also the affine that a MetaTensor must have
        affine = torch.eye(4, dtype=torch.float64).expand(len(image), 4, 4)
        known: dict[str, Any] = {}
        if isinstance(inputs, MetaTensor) and inputs.is_batch:
            affine, known = inputs.affine, dict(inputs.meta)
        meta = known | {
            "theta": result.theta,
            "theta_start": result.theta_start,
            "refinement": columns,
            "moving_representation": result.moving,
            "fixed_representation": result.fixed,
        }
        if self.both_ways:
            meta["back_ddf"] = self.refiner(istn, *other_way(image, guidance or {})).ddf
        ddf = MetaTensor(result.ddf, affine=affine, meta=meta)
        ddf.is_batch = True  # so that hosts that take ``ddf[0]`` get the metadata of one pair as well
        return ddf
