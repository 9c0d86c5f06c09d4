"""Registration as a MONAI Deploy application: ``python app.py -i IN -o OUT [-m MODEL]``; see README.md beside it."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import Source, find_pair, model_settings
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Operator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_utils import ModelInfo
from options import Options, make_parser, parse_options
from registration_operator import RegistrationOperator
from segments import segments_of
from series import OneSeriesSelectorOperator, SeriesLoaderOperator

import istn_monai
from istn_monai.workflow.errors import exit_with_cause
from istn_monai.workflow.results import check_pair_files


@dataclass(frozen=True)
class Job:
    """What is to be done, found and checked before Holoscan starts.

    Attributes:
        sources: of the pair, see :func:`inputs.find_pair`.
        output: folder for results.
        registration: arguments of ``istn_monai.registration.Registration``.
        segments: by the label's values, in ascending order; None if no DICOM SEG is to be written.
        series_rules: see :class:`options.Options`.
    """

    sources: dict[str, Source]
    output: Path
    registration: dict[str, Any]
    segments: dict[int, SegmentDescription] | None
    series_rules: dict[str, str]

    @property
    def series_keys(self) -> list[str]:
        """The images that are DICOM series. A label has no metadata that would be needed: it is read by its path."""
        return [key for key in ("fixed_image", "moving_image") if self.sources[key].is_dicom]


def prepare(options: Options, context: AppContext) -> Job:
    """The job that the options and the SDK's input, output and model paths stand for."""
    output, folder = (Path(path).absolute() for path in (context.output_path, context.input_path))
    # the SDK's default, a folder "models" wherever one stands, could hold anything
    given = "model" in context.args or "HOLOSCAN_MODEL_PATH" in os.environ
    model = Path(context.model_path).absolute() if given else None
    sources = find_pair(folder, options.atlas, options.atlas_label, tuple(options.series_rules))
    check_pair_files(output, **{key: str(source.path) for key, source in sources.items()})
    for key, source in sources.items():
        logging.info(f"{key}: {'DICOM in ' if source.is_dicom else ''}{source.path}")
    registration = model_settings(model) | {"refine_steps": options.refine_steps} | options.settings
    as_segments = sources["fixed_image"].is_dicom and "moving_label" in sources
    segments = segments_of(sources["moving_label"], options.segments) if as_segments else None
    return Job(sources, output, registration, segments, options.series_rules)


class RegistrationApp(Application):
    """Registers the pair of a job: image files, DICOM series, or one of each."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__([sys.argv[0]])  # Holoscan would look for options of its own in sys.argv

    def compose(self) -> None:
        """Builds the graph that the job needs."""
        job = self.job
        # without a series there is nothing that it would wait for
        conditions = [] if job.series_keys else [CountCondition(self, 1)]
        register = RegistrationOperator(
            self,
            *conditions,
            sources=job.sources,
            output_folder=job.output,
            registration=job.registration,
            series_keys=job.series_keys,
            label_values=None if job.segments is None else list(job.segments),
            name="registration",
        )
        self.add_operator(register)
        for key in job.series_keys:
            selector = self.add_series(key)
            self.add_flow(selector, register, {("study_selected_series_list", key)})
            if key == "fixed_image" and job.segments is not None:
                writer = self.segmentation_writer(list(job.segments.values()))
                self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
                self.add_flow(register, writer, {("seg_image", "seg_image")})

    def add_series(self, key: str) -> Operator:
        """Loads the DICOM files of a folder; the selector, which gives the series that is meant."""
        folder, rules = self.job.sources[key].path, self.job.series_rules.get(key, "")
        loader = SeriesLoaderOperator(self, CountCondition(self, 1), input_folder=folder, name=f"{key}_loader")
        selector = OneSeriesSelectorOperator(self, key=key, rules=rules, name=f"{key}_selector")
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        return selector

    def segmentation_writer(self, segments: list[SegmentDescription]) -> Operator:
        """The SDK's writer of DICOM SEG."""
        return DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=segments,
            output_folder=self.job.output,
            model_info=ModelInfo("istn-monai", "istn-monai", istn_monai.__version__),
            custom_tags={"SeriesDescription": "Labels propagated by istn-monai"},
            name="segmentation_writer",
        )


def main() -> None:
    """Runs the application; a foreseen failure is one last line and exit code 1."""
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(f"{make_parser().format_help()}\nand the options of the App SDK:\n")
        options, arguments = parse_options(sys.argv[1:])
        RegistrationApp(prepare(options, Application.init_app_context([sys.argv[0], *arguments]))).run()
    except Exception as error:
        exit_with_cause(error, "app.py")


if __name__ == "__main__":
    main()
