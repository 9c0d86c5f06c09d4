"""The operator that registers: the same code, and the same results, as ``istn-monai register``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inputs import Source
from monai.data import MetaTensor
from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series import DICOMSeries
from segments import read_segmentation, segmentation_file
from series import frames, read_series

from istn_monai.io.images import read_or_explain
from istn_monai.registration import Registration


class RegistrationOperator(Operator):
    """Registers one pair and writes what ``istn-monai register`` does.

    MONAI Deploy's ``MonaiBundleInferenceOperator`` is not used: it would cast the warped image to 8 bit, and knows
    neither displacement fields nor transforms.

    Named inputs:
        fixed_image, moving_image: list of ``StudySelectedSeries`` with one series; those of ``series_keys``.

    Named output:
        seg_image: ``Image`` of the warped label, a frame for each instance of the fixed series; only with
            ``label_values``.

    Args:
        sources: by ``fixed_image``, ``moving_image`` and, if there is one, ``moving_label``.
        output_folder: for results.
        registration: arguments of ``istn_monai.registration.Registration``.
        series_keys: the images that come through ports.
        label_values: of the label map, in the order of the segments; None for no DICOM SEG.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        sources: Mapping[str, Source],
        output_folder: Path,
        registration: Mapping[str, Any],
        series_keys: Sequence[str] = (),
        label_values: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.sources = dict(sources)
        self.output_folder = output_folder
        self.registration = dict(registration)
        self.label_values = label_values
        self.series_keys = list(series_keys)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        for key in self.series_keys:
            spec.input(key)
        if self.label_values is not None:
            spec.output("seg_image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        series: dict[str, DICOMSeries] = {
            key: op_input.receive(key)[0].selected_series[0].series for key in self.series_keys
        }
        registration = Registration(**self.registration)
        result = registration(self.pair(series))
        registration.save(result, self.output_folder)
        if self.label_values is not None:
            label = frames(result["warped_label"], series["fixed_image"], self.label_values)
            op_output.emit(Image(label), "seg_image")

    def pair(self, series: Mapping[str, DICOMSeries]) -> dict[str, str | MetaTensor]:
        """The files of the pair, and what is read here from DICOM."""
        pair: dict[str, str | MetaTensor] = {key: str(source.path) for key, source in self.sources.items()}
        pair |= {key: read_series(one, key) for key, one in series.items()}
        segmentation = segmentation_file(self.sources["moving_label"]) if "moving_label" in self.sources else None
        if segmentation is not None:
            moving = pair["moving_image"]
            image = moving if isinstance(moving, MetaTensor) else read_or_explain(moving, "moving_image", dtype=None)
            pair["moving_label"] = read_segmentation(segmentation, image)
        return pair
