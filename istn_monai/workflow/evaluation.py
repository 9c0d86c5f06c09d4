"""Evaluation of a network on annotated pairs: metrics for each pair and in summary, as a table, CSV and JSON.

An evaluation goes on where it was interrupted, and one that is there already is not done again.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import monai
import torch
from monai.data import decollate_batch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.guidance import Guidance, other_way
from istn_monai.inferer import guided_arguments
from istn_monai.io.landmarks import is_points
from istn_monai.io.paths import absolute, check_apart, checked_overwrite
from istn_monai.io.staging import FILES, ResultFolder
from istn_monai.metrics import inverse_consistency, without_nan
from istn_monai.qa.cohort import QA_COHORT, Entry, jpeg, write_cohort
from istn_monai.qa.inspector import PairInspector
from istn_monai.qa.measures import file_name
from istn_monai.transforms.checks import reads_labels
from istn_monai.transforms.guidance import batched
from istn_monai.transforms.keys import LABEL_KEYS, POINT_KEYS
from istn_monai.transforms.map_files import with_channels
from istn_monai.transforms.postprocessing import Representd
from istn_monai.workflow.console import counted
from istn_monai.workflow.distributed import gathered, rank, world_size
from istn_monai.workflow.failures import listed_failures, reason_of
from istn_monai.workflow.learn2reg import MEASURED, Submission, write_measured
from istn_monai.workflow.learn2reg import table as learn2reg_table
from istn_monai.workflow.pair_metrics import (  # noqa: F401 (they were here before)
    label_map,
    label_metrics,
    landmark_metrics,
    merged_soi,
    pair_metrics,
    soi_values,
    statistics,
    warn_of_landmarks,
)
from istn_monai.workflow.progress import Done, FieldSpread, Progress, merged
from istn_monai.workflow.provenance import (
    described,
    differing_inputs,
    differing_options,
    input_record,
    listed,
    weights_hash,
)
from istn_monai.workflow.summaries import TABLE_TITLES, summarize, table  # noqa: F401

IDENTITY = "Id"
SAME = 1e-2  # voxels, by which a ddf may differ from that of its parameters: networks are computed again, on any device
TABLE, EVALUATION = "evaluation.csv", "evaluation.json"
PROGRESS = ".evaluation.pairs"  # folder of what an interrupted evaluation has done


def evaluation_folder(output_dir: str | Path) -> ResultFolder:
    """The results of an evaluation in a folder, which may be that of a training run."""
    return ResultFolder(
        output_dir, (TABLE, QA_COHORT, MEASURED, EVALUATION), EVALUATION, ("summary", "provenance", "pairs")
    )


class Evaluation:
    """Evaluates registrations of annotated pairs, before and after.

    Args:
        dataset: preprocessed pairs with labels, see the bundle's ``evaluate.json``.
        network: maps ``image`` to the ddf.
        inferers: by the name of the method, e.g. ``{"one-pass": SimpleInferer()}``; "Id" is always there.
        output_dir: folder for ``evaluation.csv`` (all pairs) and ``evaluation.json`` (summary and pairs).
        soi_labels: groups of label values; None for real-valued maps; [] for landmarks alone.
        device: where the network is.
        provenance: kept in the JSON, e.g. checkpoint and settings.
        qa: also writes ``qa.html``, the QA pages of all pairs after the last method; needs a ``DisplacementNetwork``.
        maps: whether the network's SoI are real-valued maps or landmarks, for the QA page; None if ``soi_labels`` says
            so.
        items: the files of each pair: by their content a repeated evaluation is known; None for pairs from memory.
        options: settings that matter beside the other arguments; kept and compared.
        read: further files that are read, by what errors call them.
        overwrite: replaces an evaluation of other pairs, weights or options; without it that raises an error.
        both_ways: also registers each pair the other way round, for the inverse-consistency error.
        learn2reg: also writes what the last method finds as a submission to that challenge, and the challenge's metrics
            as ``learn2reg.json``; needs pairs of files.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        network: nn.Module,
        inferers: Mapping[str, Inferer],
        output_dir: str | Path,
        soi_labels: Sequence[Sequence[int]] | None,
        device: torch.device | str = "cpu",
        provenance: Mapping[str, Any] | None = None,
        qa: bool = False,
        maps: bool | None = None,
        items: Sequence[Mapping[str, str]] | None = None,
        options: Mapping[str, Any] | None = None,
        read: Mapping[str, str] | None = None,
        overwrite: bool = False,
        both_ways: bool = False,
        learn2reg: Submission | None = None,
    ) -> None:
        self.dataset = dataset
        self.network = network
        self.inferers = dict(inferers)
        self.output_dir = absolute(output_dir)
        self.results = evaluation_folder(output_dir)
        self.soi_labels = soi_labels
        self.device = device
        self.provenance = dict(provenance or {})
        self.inspect = PairInspector(network, None if maps else soi_labels) if qa else None
        self.items = None if items is None else [with_channels(item) for item in items]
        own = {"soi_labels": soi_labels, "qa": bool(qa), "maps": maps, "both_ways": both_ways}
        own |= {} if learn2reg is None else {"learn2reg": True}
        self.options: dict[str, Any] = own | dict(options or {})
        self.options["inferers"] = {name: described(inferer) for name, inferer in inferers.items()}
        self.read = dict(read or {})
        self.overwrite = checked_overwrite(overwrite)
        self.both_ways = both_ways
        self.learn2reg = learn2reg

    def run(self) -> dict[str, Any]:
        """Evaluates, writes the files, prints the table, and returns what the JSON holds; does nothing a second time.

        An interrupted evaluation goes on; a pair that fails is left out, and the others go on. Several processes split
        the pairs among themselves; the first writes.

        Raises:
            FileExistsError: naming what differs, if another evaluation is there; or a file that is no result.
            ValueError: naming the pairs that failed, once those of the others are written.
        """
        self.network.eval()
        with self.results.locked() if rank() == 0 else nullcontext():
            found = gathered(self.finished() if rank() == 0 else None)[0]
            if found is None:
                return self.evaluate()
        if rank() == 0:
            print(f"evaluated before: {self.results.mark} is of these pairs, weights and options")
        return found

    def finished(self) -> dict[str, Any] | None:
        """What the JSON of this very evaluation holds, if it is there, whole.

        Raises:
            FileExistsError: naming what differs, if there is another one; or a file that is no result.
        """
        files = [(f"pair {number}: {key}", file) for number, item in enumerate(self.items or [])
                 for key, file in item.items()]  # fmt: skip
        check_apart(self.results.files, [*self.read.items(), *files])
        self.results.check_free()
        found = self.results.content()
        if found is None or self.overwrite:
            return None
        then, now = ({key: one.get(key) for key in ("weights_sha256", "options")} for one in (found, self.made_of()))
        what = listed(chain(self.other_pairs(found.get("inputs")), differing_options(then, now)))
        if what:
            raise FileExistsError(
                f"{self.results.mark} is another evaluation ({what}): add --overwrite to replace it, or choose another "
                "output_dir"
            )
        whole = self.results.is_whole() and (self.learn2reg is None or self.learn2reg.is_whole())
        return found if whole and not found.get("failures") else None

    def made_of(self) -> dict[str, Any]:
        """Weights, options and pairs."""
        inputs = [{key: input_record(file) for key, file in item.items()} for item in self.items or []]
        return {
            "weights_sha256": weights_hash(self.network.state_dict()),
            "options": json.loads(json.dumps(self.options, default=str)),
            "inputs": inputs if self.items is not None else None,
        }

    def other_pairs(self, then: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
        """What differs between the pairs of an earlier evaluation and those of now, in words."""
        if then is None or self.items is None:
            yield "pairs from memory"
        elif len(then) != len(self.items):
            yield f"{len(then)} pairs then, {len(self.items)} now"
        else:
            for number, (record, item) in enumerate(zip(then, self.items, strict=True)):
                yield from (f"pair {number}: {text}" for text in differing_inputs(record, item))

    def evaluate(self) -> dict[str, Any]:
        """Evaluates what is not done yet, and writes the files."""
        made_of = self.made_of() if rank() == 0 else {}
        if self.learn2reg is not None and rank() == 0:
            begun = self.results.mark.exists() or (self.output_dir / PROGRESS).exists()
            self.learn2reg.check_free(self.overwrite or begun)
        progress = Progress(self.output_dir / PROGRESS, gathered(None if self.items is None else made_of)[0])
        earlier = progress.earlier() if rank() == 0 else Done()
        known = set(gathered(list(earlier.rows))[0])
        own, failures = Done(), dict[str, str]()
        numbers = [number for number in range(len(self.dataset)) if number not in known][rank() :: world_size()]
        for number in counted(numbers, "evaluating"):
            try:
                self.evaluate_pair(number, own)
            except Exception as error:  # whatever it is, the other pairs are not concerned
                failures[f"pair {number}"] = reason_of(error)
                continue
            progress.keep(own, number)
        failures = dict(item for chunk in gathered(list(failures.items())) for item in chunk)
        done = merged([earlier, *gathered(own)])
        result = self.result(done, failures) | made_of
        if rank() == 0 and done.rows:
            self.write(result, done.entries)
        if failures:
            raise ValueError(
                f"{len(failures)} of {len(self.dataset)} pairs failed ({listed_failures(failures)}); "
                + (f"the metrics of the others are in {self.output_dir}" if done.rows else "nothing is written")
            )
        if rank() == 0:
            progress.remove()
        return result

    def evaluate_pair(self, number: int, done: Done | None = None) -> list[dict[str, Any]]:
        """One row of metrics for each method; all that came of the pair is added to ``done``, if it is given."""
        pair = self.dataset[number]
        for key in LABEL_KEYS if reads_labels(self.soi_labels) else POINT_KEYS:
            if key not in pair:
                raise ValueError(f"evaluation needs {key!r} for each pair; pair {number} has none")
            if key in POINT_KEYS and not is_points(str(pair[key])):
                raise ValueError(f"{pair[key]} is no landmark file: give evaluated_labels, for it has no TRE")
        warn_of_landmarks(pair, number)
        image, guidance = pair["image"].as_tensor()[None].to(self.device), batched(pair)
        files = {side: str(pair[f"{side}_image"].meta.get("filename_or_obj", "memory")) for side in ("moving", "fixed")}
        nothing = torch.zeros(1, image.ndim - 2, *image.shape[2:])
        fields, results, seconds = {IDENTITY: nothing}, {IDENTITY: dict(pair)}, {IDENTITY: 0.0}
        for method, inferer in self.inferers.items():
            start = time.perf_counter()
            pred = self.registered(inferer, image, guidance)
            fields[method] = convert_to_tensor(pred, track_meta=False, device="cpu")
            seconds[method] = time.perf_counter() - start
            results[method] = self.represented(pair, pred)
        backs = self.fields_back(*other_way(image, guidance)) | {IDENTITY: nothing} if self.both_ways else {}
        rows = [
            {"pair": number, **files, "method": method}
            | pair_metrics(pair, ddf, self.soi_labels, self.transform(results[method]))
            | (inverse_consistency(ddf, backs[method], Grid.of(pair["image"]).spacing) if method in backs else {})
            | {"seconds": seconds[method]}
            for method, ddf in fields.items()
        ]
        if done is not None:  # a pair that fails leaves nothing
            if self.inspect is not None and self.inferers:
                done.entries[number] = self.entry(f"pair_{number:04d}", results[method])
            if self.learn2reg is not None:
                last = list(fields)[-1]
                self.learn2reg.keep(number, pair, fields[last], self.transform(results[last]))
            done.rows[number] = rows
            for method, ddf in fields.items():
                done.spread.setdefault(method, FieldSpread()).add(ddf)
        return rows

    def registered(self, inferer: Inferer, image: Tensor, guidance: Guidance) -> Tensor:
        """The ddf that an inferer makes of a batch."""
        with torch.no_grad():
            return inferer(image, self.network, **guided_arguments(inferer, guidance))

    def fields_back(self, image: Tensor, guidance: Guidance) -> dict[str, Tensor]:
        """The ddf of each method for a batch in which moving and fixed have changed places, on the CPU."""
        found = {name: self.registered(inferer, image, guidance) for name, inferer in self.inferers.items()}
        return {name: convert_to_tensor(pred, track_meta=False, device="cpu") for name, pred in found.items()}

    def represented(self, pair: Mapping[str, Any], pred: Tensor) -> dict[str, Any]:
        """A pair with the ddf ``(1, D, *S)`` that a method found, and the parameters of it, if the network has any."""
        if not hasattr(self.network, "istn"):
            return dict(pair)
        result = Representd(self.network)(dict(pair) | {"pred": decollate_batch(pred)[0]})
        return {str(key): value for key, value in result.items()}

    def transform(self, result: Mapping[str, Any]) -> WorldTransform | None:
        """What a registration of this result writes, before the initial alignment.

        None if the ddf is not of the network's parameters: of a network without any, or an inferer that gives its own.
        """
        if "theta" not in result:
            return None
        theta, grid = torch.as_tensor(result["theta"])[None], Grid.of(result["image"])
        transformation = self.network.istn.transformation.resized(grid.spatial_size)
        ddf = convert_to_tensor(result["pred"], track_meta=False)
        if not torch.allclose(transformation(theta)[0].to(ddf), ddf, rtol=0.0, atol=SAME):
            return None
        return world_transform(transformation, theta, grid)

    def result(self, done: Done, failures: Mapping[str, str]) -> dict[str, Any]:
        """What the JSON holds, but for what it was made of."""
        rows = list(chain.from_iterable(done.rows[number] for number in sorted(done.rows)))
        return {
            "summary": summarize(rows),
            "field_std_voxels": {method: fields.std() for method, fields in done.spread.items()},
            "provenance": self.provenance | {"monai": monai.__version__, "torch": torch.__version__},
            "pairs": rows,
            "qa": {entry.name: entry.status for _, entry in sorted(done.entries.items())},
        } | ({"failures": dict(failures)} if failures else {})

    def entry(self, name: str, result: Mapping[str, Any]) -> Entry:
        """The QA page of one pair, see :meth:`represented`."""
        assert self.inspect is not None
        verdict, page, view = self.inspect(result)
        files = " → ".join(file_name(result[f"{side}_image"], "memory") for side in ("moving", "fixed"))
        return Entry(name, files, verdict.report(), jpeg(page), view=view)

    def write(self, result: dict[str, Any], entries: Mapping[int, Entry]) -> None:
        """Writes the table, the page and the JSON, all or none, and prints the summary."""
        results = self.results
        with results.staged():
            with results.writing(TABLE) as part, open(part, "w", encoding="utf-8", newline="") as file:
                columns = dict.fromkeys(name for row in result["pairs"] for name in row)  # not all have landmarks
                writer = csv.DictWriter(file, fieldnames=list(columns))
                writer.writeheader()
                writer.writerows(result["pairs"])
            if entries:
                failed = [Entry(name, "", None, error=why) for name, why in result.get("failures", {}).items()]
                with results.writing(QA_COHORT) as part:
                    title = f"Registration QA of an evaluation, {list(self.inferers)[-1]}"
                    write_cohort([*entries.values(), *failed], part, title)
            submitted = self.learn2reg and self.learn2reg.measured(sorted({row["pair"] for row in result["pairs"]}))
            if submitted:
                with results.writing(MEASURED) as part:
                    write_measured(submitted, part)
            result[FILES] = [*results.written, EVALUATION]
            with results.writing(EVALUATION) as part:
                part.write_text(json.dumps(without_nan(result), indent=1, default=str), encoding="utf-8")
        print(table(result["summary"]))
        if submitted:
            print(learn2reg_table(submitted))
        others = [name for name in reversed(result[FILES]) if name != TABLE]
        print(f"written to {self.output_dir / TABLE} and {' and '.join(others)}")
