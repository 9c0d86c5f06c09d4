"""Training losses of the paper: STN-u, STN-s, ISTN-e (Eq. 1), ISTN-i (Eq. 2), and the refinement loss r (Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from istn_monai.geometry.filling import filled
from istn_monai.geometry.sampling import warp
from istn_monai.geometry.transformation import per_axis
from istn_monai.mind import mind_ssc
from istn_monai.networks import ISTNOutput
from istn_monai.objective import bending_energy, counted_mean, image_terms
from istn_monai.refine_weights import LOSS_TERMS, term_weights

VARIANTS = ("u", "s", "e", "i")
READ = ("label", "mask")  # of a batch
LEAST = 1e-6  # probability whose logarithm is taken
WHOLE = 1 - 1e-4  # of an interpolated mask: all that a voxel is interpolated from counts
Loss = Callable[[Tensor, Tensor], Tensor]
#: SoI channels ``(B, 2K, *S)``; or a batch with these as ``label`` and, if there are masks, ``(B, 2, *S)`` as ``mask``
Target: TypeAlias = Tensor | Mapping[str, Tensor]


class ISTNLoss(nn.Module):
    r"""Loss of one variant; only the terms of that variant are computed.

    With M, F the images, M', F' their representations, S_M, S_F their structures of interest (SoI), ``X_t`` the
    moving X warped by the predicted transformation, and ``d`` the similarity (the paper: mean squared error):

    - ``u``: :math:`d(M_t, F)`
    - ``s``: :math:`d(S_{M;t}, S_F)`
    - ``e``: :math:`d(M', S_M) + d(F', S_F) + d(S_{M;t}, S_F)` (Eq. 1)
    - ``i``: :math:`d(M'_t, S_F) + d(S_{M;t}, F') + d(S_{M;t}, S_F)` (Eq. 2)
    - ``r``: :math:`d(M'_t, F')`, for test-time refinement; needs no label

    An SoI channel that is empty in an image counts as not annotated there, and is left out of what would teach that
    nothing is there: for this pair, of all terms that compare moving with fixed, and of its own image's in Eq. 1.

    Args:
        variant: "u", "s", "e", "i" or "r".
        similarity: called as ``similarity(prediction, target)`` with two ``(B, K, *S)``; None is ``MSELoss``. Any
            loss of MONAI that compares two images.
        regularization: called with the ddf ``(B, D, *S)``, e.g. ``monai.losses.BendingEnergyLoss()``; None for none.
        regularization_weight: its factor.
        itn_similarity: likewise, of an image's representation with its own structures alone (Eq. 1); None is
            ``similarity``.
        weights: of ``structures``, the variant's own terms, and of further ones, by name or as a preset: ``image``, 1 -
            local correlation of the images, ``mse``, ``nmi``, ``mind``, and ``bending``, of the ddf in mm; the terms
            and presets of a refinement, see :class:`istn_monai.objective.PairObjective`. None for the variant's own.
        spacing: of the grid in mm, for ``bending``.
        inverse: theta ``(B, P)`` to the ddf of the other way round, such as ``svf.inverse``: the terms are then the
            means of both ways. None for one.

    Where a mask of a batch is 0, nothing counts: there is neither loss nor gradient.

    Examples:
        >>> image, soi, ddf = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
        >>> moving, fixed = soi.chunk(2, dim=1)
        >>> loss = ISTNLoss("i")(ISTNOutput(image, moving, fixed, torch.zeros(1, 6), ddf), soi)
        >>> torch.isclose(loss, 3 * ((moving - fixed) ** 2).mean())
        tensor(True)
    """

    def __init__(
        self,
        variant: str = "i",
        similarity: Loss | None = None,
        regularization: Callable[[Tensor], Tensor] | None = None,
        regularization_weight: float = 0.1,
        weights: str | Mapping[str, float] | None = None,
        spacing: float | Sequence[float] = 1.0,
        itn_similarity: Loss | None = None,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if variant not in (*VARIANTS, "r"):
            raise ValueError(f"loss must be one of {VARIANTS} (or r, for refinement), got {variant!r}")
        self.variant = variant
        self.similarity = nn.MSELoss() if similarity is None else similarity
        self.itn_similarity = self.similarity if itn_similarity is None else itn_similarity
        self.regularization = regularization
        self.regularization_weight = regularization_weight
        self.weights = {"structures": 1.0} if weights is None else term_weights(weights, "loss_weights", LOSS_TERMS)
        self.spacing = spacing
        self.inverse = inverse

    def terms(self, output: ISTNOutput, label: Target | None = None) -> dict[str, Tensor]:
        """The terms by name, as scalars, each weighted; their sum is the loss.

        Args:
            output: of :class:`istn_monai.ISTN`.
            label: ``(B, 2K, *S)``, K SoI channels moving, then fixed; not needed by u and r. Or a batch with it.
        """
        batch = label if isinstance(label, Mapping) else {} if label is None else {"label": label}
        terms = self.one_way(output, batch)
        if self.inverse is None:
            return terms
        back = self.one_way(*other_way(output, batch, self.inverse(output.theta)))
        return {name: (value + back[name]) / 2 for name, value in terms.items()}

    def one_way(self, output: ISTNOutput, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of moving registered to fixed."""
        counts = Counts(output.ddf, batch.get("mask"))
        weight = self.weights.get("structures", 0.0)
        own = self.structures(output, batch.get("label"), counts) if weight else {}
        terms = {name: weight * value for name, value in own.items()} | self.further(output, counts)
        if self.regularization is not None:
            terms["regularization"] = self.regularization_weight * self.regularization(output.ddf)
        return terms

    def structures(self, output: ISTNOutput, label: Tensor | None, counts: Counts) -> dict[str, Tensor]:
        """The variant's own terms."""
        d = self.similarity
        if self.variant == "u":
            moving, fixed = counts.images(output.image)
            return {"stn_u": d(*where(counts.both, warp(moving, output.ddf), fixed))}
        moving, fixed = output.moving_representation, output.fixed_representation
        if self.variant == "r":
            return {"stn_r": d(*where(counts.both, warp(counts.of_moving(moving), output.ddf), fixed))}
        moving_soi, fixed_soi = checked_label(label, output, self.variant)
        in_moving, in_fixed = annotated(moving_soi), annotated(fixed_soi)
        in_both = in_moving & in_fixed & counts.both
        warped_soi = warp(counts.of_moving(moving_soi), output.ddf)
        terms = {"stn_s": d(*where(in_both, warped_soi, fixed_soi))}
        if self.variant == "e":
            terms |= self.segmentation(output, label, counts)
        elif self.variant == "i":
            terms["stn_i_moving"] = d(*where(in_both, warp(counts.of_moving(moving), output.ddf), fixed_soi))
            # the network's output comes first, the annotation second: asymmetric losses depend on it
            terms["stn_i_fixed"] = d(*where(in_both, fixed, warped_soi))
        return terms

    def segmentation(self, output: ISTNOutput, label: Tensor | None, counts: Counts) -> dict[str, Tensor]:
        """The terms of Eq. 1 of which the ITN alone learns: each representation with its own image's structures."""
        moving, fixed = output.moving_representation, output.fixed_representation
        moving_soi, fixed_soi = checked_label(label, output, "e")
        in_moving, in_fixed = annotated(moving_soi) & counts.moving, annotated(fixed_soi) & counts.fixed
        d = self.itn_similarity
        return {
            "itn_moving": d(*where(in_moving, moving, moving_soi)),
            "itn_fixed": d(*where(in_fixed, fixed, fixed_soi)),
        }

    def further(self, output: ISTNOutput, counts: Counts) -> dict[str, Tensor]:
        """What keeps the image and the regularity of the field."""
        if not set(self.weights) - {"structures"}:
            return {}
        moving, fixed = counts.images(output.image)
        both = None if counts.masks is None else counts.both.to(fixed)
        terms = image_terms(self.weights, warp(moving, output.ddf), fixed, both)
        if "mind" in self.weights:
            terms["mind"] = counted_mean((warp(mind_ssc(moving), output.ddf) - mind_ssc(fixed)).square(), both)
        if "bending" in self.weights:
            spacing = per_axis("spacing", self.spacing, output.ddf.shape[1])
            terms["bending"] = bending_energy(output.ddf, spacing)
        return {name: self.weights[name] * value.mean() for name, value in terms.items()}

    def forward(self, output: ISTNOutput, label: Target | None = None) -> Tensor:
        """The loss as a scalar; arguments as in :meth:`terms`."""
        return torch.stack(list(self.terms(output, label).values())).sum()


def other_way(output: ISTNOutput, batch: Mapping[str, Tensor], ddf: Tensor) -> tuple[ISTNOutput, dict[str, Tensor]]:
    """What a network gave, and a batch, with moving and fixed in each other's place, and the ddf of that way."""
    swapped = {name: torch.cat(both.chunk(2, dim=1)[::-1], dim=1) for name, both in batch.items() if name in READ}
    image = torch.cat(output.image.chunk(2, dim=1)[::-1], dim=1)
    return ISTNOutput(image, output.fixed_representation, output.moving_representation, output.theta, ddf), swapped


class Counts:
    """Which voxels of a batch count, bool: ``moving``, ``fixed``, and ``both``, where the field finds one that counts.

    A voxel counts if all that it is interpolated from does: what lies where a mask is 0 reaches none of them.

    Args:
        ddf: ``(B, D, *S)`` in voxels.
        masks: moving and fixed, ``(B, 2, *S)``, 0 where an image does not count; None if all counts.
    """

    def __init__(self, ddf: Tensor, masks: Tensor | None) -> None:
        self.masks = masks
        every = torch.ones(1, 1, *[1] * (ddf.ndim - 2), dtype=torch.bool, device=ddf.device)
        self.moving = self.fixed = self.both = every
        if masks is not None:
            self.moving, self.fixed = (masks.to(ddf) > WHOLE).chunk(2, dim=1)
            self.both = (warp(self.moving.to(ddf), ddf.detach()) > WHOLE) & self.fixed

    def of_moving(self, moving: Tensor) -> Tensor:
        """``(B, K, *S)``, 0 where it does not count, before it is warped."""
        return moving if self.masks is None else torch.where(self.moving, moving, 0.0)

    def images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Moving and fixed image of ``(B, 2C, *S)``; what does not count is filled from what does."""
        moving, fixed = image.chunk(2, dim=1)
        if self.masks is None:
            return moving, fixed
        return all_filled(moving, self.moving), all_filled(fixed, self.fixed)


def all_filled(images: Tensor, known: Tensor) -> Tensor:
    """``(B, C, *S)``, see :func:`filled`; 0 where nothing is known."""
    pairs = zip(images, known, strict=True)
    return torch.stack([filled(image, own) if own.any() else torch.zeros_like(image) for image, own in pairs])


def annotated(soi: Tensor) -> Tensor:
    """Which SoI channels ``(B, K, *S)`` hold anything, ``(B, K, 1, ...)``."""
    return soi.flatten(2).any(2).view(*soi.shape[:2], *[1] * (soi.ndim - 2))


def where(known: Tensor, *images: Tensor) -> list[Tensor]:
    """Zeroes what is not known of images ``(B, K, *S)``, channels or voxels: it gives neither loss nor gradient."""
    return [torch.where(known, image, 0.0) for image in images]


def checked_label(label: Tensor | None, output: ISTNOutput, variant: str) -> tuple[Tensor, Tensor]:
    """Moving and fixed SoI of a target, or a ValueError that says what is wrong with it."""
    if label is None:
        raise ValueError(f"loss {variant!r} needs label (B, 2K, *S), got None")
    if label.shape[1] % 2 or label.shape[2:] != output.ddf.shape[2:]:
        raise ValueError(
            f"label must be (B, 2K, {', '.join(map(str, output.ddf.shape[2:]))}), K SoI channels moving, then fixed, "
            f"got {tuple(label.shape)}"
        )
    channels = output.moving_representation.shape[1]
    if variant in "ei" and channels != label.shape[1] // 2:
        raise ValueError(
            f"loss {variant!r} compares the ITN's output with the SoI: the ITN has {channels} channel(s), the label "
            f"{label.shape[1] // 2}; set the ITN's out_channels to the number of SoI groups"
        )
    moving, fixed = label.chunk(2, dim=1)
    return moving, fixed


class DiceMSELoss(nn.Module):
    """Soft Dice plus mean squared error of maps in [0, 1]; the Dice term keeps small structures from vanishing.

    The squared error alone is all but blind to a structure that fills 2 % of the volume.

    Args:
        dice_weight: factor of the Dice term.
        mse_weight: factor of the squared error.

    Examples:
        >>> soi = torch.zeros(1, 1, 8, 8)
        >>> soi[..., 2:5, 3:6] = 1
        >>> DiceMSELoss()(soi, soi).abs() < 1e-4
        tensor(True)
    """

    def __init__(self, dice_weight: float = 1.0, mse_weight: float = 1.0) -> None:
        super().__init__()
        self.dice = DiceLoss(squared_pred=True)
        self.mse = nn.MSELoss()
        self.dice_weight = dice_weight
        self.mse_weight = mse_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``(B, K, *S)`` both; a scalar."""
        return self.dice_weight * self.dice(prediction, target) + self.mse_weight * self.mse(prediction, target)


class DiceCrossEntropyLoss(nn.Module):
    """Soft Dice plus cross-entropy of probabilities, as segmentation networks are trained (Isensee et al., 2021).

    The structures do not overlap: what their probabilities lack to 1 is the background's. Maps between 0 and 1 as
    targets count by their parts.

    Args:
        dice_weight: factor of the Dice term.
        entropy_weight: factor of the cross-entropy, a mean over voxels.

    Examples:
        >>> soi = torch.zeros(1, 2, 8, 8)
        >>> soi[:, 0, 2:5, 3:6] = 1
        >>> soi[:, 1, 6:, 6:] = 1
        >>> DiceCrossEntropyLoss()(soi, soi).abs() < 1e-4
        tensor(True)
    """

    def __init__(self, dice_weight: float = 1.0, entropy_weight: float = 1.0) -> None:
        super().__init__()
        self.dice = DiceLoss()
        self.dice_weight = dice_weight
        self.entropy_weight = entropy_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``(B, K, *S)`` both, without the background; a scalar."""
        entropy = -(with_background(target) * with_background(prediction).clamp(min=LEAST).log()).sum(1).mean()
        return self.dice_weight * self.dice(prediction, target) + self.entropy_weight * entropy


def with_background(maps: Tensor) -> Tensor:
    """``(B, K, *S)`` to ``(B, K + 1, *S)``, the background last."""
    return torch.cat([maps, 1 - maps.sum(1, keepdim=True)], dim=1)
