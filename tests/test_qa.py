"""The QA page: its rules, its metrics, its picture, and who writes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import DATA_DIR, ball, rand, random_checkpoint, write_json, write_nifti
from matplotlib.backends.backend_agg import FigureCanvasAgg
from monai.bundle import run
from PIL import Image

from istn_monai.metrics import FIELD_METRICS, jacobian_determinant
from istn_monai.qa.cohort import Entry, jpeg, write_cohort
from istn_monai.qa.measures import RegisteredPair, ambiguity, measure, soft_overlap
from istn_monai.qa.page import draw_page, page_picture
from istn_monai.qa.panels import columns_of, planes_of
from istn_monai.qa.rules import AMBER, GREEN, RED, RULES, STATUSES, UNKNOWN, traffic_light
from istn_monai.refinement import RefinementReport
from istn_monai.registration import Registration, register_datalist, register_files
from istn_monai.workflow.errors import foreseen_cause

BRAIN = DATA_DIR / "brain" / "images"
CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
SETTINGS = {
    "spatial_size": [16, 20, 18], "spacing": [1.0, 1.5, 1.2], "control_spacing": [12], "soi_labels": [[1]],
    "device": "cpu",
}  # fmt: skip


def blob(size, shift=0.0, spread=3.0):
    """A smooth ball of height 1, sharp where it falls, ``(1, *size)``."""
    axes = torch.meshgrid(*(torch.arange(float(s)) for s in size), indexing="ij")
    radius = sum((axis - s / 2 - shift) ** 2 for axis, s in zip(axes, size, strict=True)).sqrt()
    return torch.sigmoid(4 * (min(size) / 3.5 - radius))[None]


def made_pair(size=(20, 24, 18), shift=0.0, **changes) -> RegisteredPair:
    """A pair whose moving ball lies ``shift`` voxels further along each axis, and is brought back."""
    moving, fixed = blob(size, shift), blob(size)
    everywhere = torch.ones(size, dtype=torch.bool)
    ddf = torch.full((len(size), *size), float(shift))
    trace = (0.04, *[float("nan")] * 4, 0.02, 0.01)
    pair = RegisteredPair(
        names=("moving.nii.gz", "fixed.nii.gz"), moving=moving, fixed=fixed, moving_representation=moving,
        fixed_representation=fixed, one_pass=0.9 * ddf, ddf=ddf, spacing=(1.0, 1.5, 2.0)[: len(size)],
        covered=everywhere, viewed=everywhere, kind="mask",
        refinement=RefinementReport(6, 0.1, 0.04, 0.01, at_bound=0.0, trace=trace),
    )  # fmt: skip
    return replace(pair, **changes)


# --- rules -----------------------------------------------------------------------------------------------------------

GOOD = {
    "overlap_one_pass": 0.86, "overlap": 0.94, "ambiguity": 0.2, "structure": 1.0, "volume_ratio": 1.2, "coverage": 1.0,
    "correlation": 0.6, "objective": 0.2, "objective_images": 0.85, "lncc_change": 0.2, "at_bound": 0.0,
    "displacement": 0.18, "sdlogj": 0.3, "folding": 0.0, "inverse_consistency_structures": 0.5,
}  # fmt: skip


def test_a_good_pair_is_green_without_a_reason():
    verdict = traffic_light(GOOD)
    assert set(GOOD) == {rule.metric for rule in RULES}
    assert verdict.status == GREEN and verdict.reasons == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.metric)
def test_each_rule_fires_beyond_its_limits_and_names_them(rule):
    worse = 1e-3 if rule.high_is_bad else -1e-3
    for limit, before, after in ((rule.amber, GREEN, AMBER), (rule.red, AMBER, RED)):
        if limit is None:
            continue
        assert traffic_light(GOOD | {rule.metric: limit - worse}).status == before
        verdict = traffic_light(GOOD | {rule.metric: limit + worse})
        assert verdict.status == after
        assert len(verdict.reasons) == 1 and verdict.reasons[0].startswith(f"{after}: {rule.meaning}")
        assert all(f"{value:g}" in verdict.reasons[0] for value in (rule.amber, rule.red) if value is not None)
    assert traffic_light(GOOD | {rule.metric: float("nan")}).status == RED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.metric)
def test_a_rule_without_its_metric_says_so(rule):
    verdict = traffic_light({name: value for name, value in GOOD.items() if name != rule.metric})
    finding = next(finding for finding in verdict.findings if finding.rule is rule)
    assert finding.status == UNKNOWN and verdict.status == GREEN
    assert verdict.report()["skipped"] == [f"{rule.title}: {rule.absent}"]


def test_the_worst_rule_decides_and_nothing_known_is_red():
    verdict = traffic_light(GOOD | {"sdlogj": 0.6, "ambiguity": 0.9})
    assert verdict.status == RED and [reason.split(":")[0] for reason in verdict.reasons] == [RED, AMBER]
    assert traffic_light({}).status == RED


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_likeness_is_the_local_correlation_and_what_a_refinement_changed_of_it():
    texture = rand(1, 20, 24, 18)
    moving = texture.roll((2, 2, 2), (1, 2, 3))
    metrics = measure(made_pair(shift=2.0, moving=moving, fixed=texture))
    assert metrics["lncc"] > 0.6 and metrics["lncc_change"] > 0.1  # one pass stops a tenth short; the rim is not seen
    worse = measure(made_pair(moving=texture, fixed=texture, ddf=torch.full((3, 20, 24, 18), 1.0)))
    assert worse["lncc_change"] == pytest.approx(worse["lncc"] - 1, abs=1e-3) and worse["lncc_change"] < -0.3
    assert "lncc_change" not in measure(made_pair(refinement=None))


def test_ambiguity_and_overlap_by_hand():
    half = torch.zeros(1, 4, 5)
    half[0, :2] = 1.0
    assert (
        ambiguity(half) == 0.0
        and ambiguity(torch.full((1, 4, 5), 0.3)) == pytest.approx(0.7)
        and ambiguity(0 * half) == 1.0
    )
    assert soft_overlap(half, half) == pytest.approx(1.0, abs=1e-6)
    shifted = half.roll(1, dims=1)  # two rows each, one shared
    assert soft_overlap(half, shifted) == pytest.approx(0.5, abs=1e-6)
    both = soft_overlap(torch.cat([half, half]), torch.cat([half, shifted]))
    assert both == pytest.approx(0.5, abs=1e-6)  # the lowest channel


@pytest.mark.parametrize("size", [(30, 26), (20, 24, 18)])
def test_metrics_of_a_known_shift(size):
    pair = made_pair(size, shift=2.0)
    metrics = measure(pair)
    far = 2.0 * np.linalg.norm(pair.spacing)
    assert metrics["displacement_mm"] == pytest.approx(far, rel=1e-5)
    shortest = min(s * step for s, step in zip(size, pair.spacing, strict=True))
    assert metrics["displacement"] == pytest.approx(far / shortest, rel=1e-5)
    assert metrics["overlap"] > 0.999 > metrics["overlap_one_pass"] > 0.9
    assert metrics["objective"] == pytest.approx(0.25)
    assert metrics["folding"] == 0.0 and metrics["sdlogj"] < 1e-6
    assert traffic_light(metrics).status == GREEN


@pytest.mark.parametrize(
    "kind, terms, name, ratio",
    [
        ("mask", {}, "objective", 0.25),  # the paper's: of the representations
        ("mask", {"structures": (0.5, 0.1), "image": (0.4, 0.3)}, "objective", 0.2),
        ("mask", {"image": (0.95, 0.81)}, "objective_images", 0.25),
        ("image", {"image": (0.95, 0.81), "bending": (0.0, 0.01)}, "objective_images", 0.25),
        ("image", {}, "objective_images", 0.25),
    ],
)
def test_the_objective_is_judged_as_one_of_structures_only_where_these_were_refined(kind, terms, name, ratio):
    pair = made_pair(shift=2.0, kind=kind)
    metrics = measure(replace(pair, refinement=replace(pair.refinement, terms=terms)))
    assert {key: metrics[key] for key in metrics if key in ("objective", "objective_images")} == {
        name: pytest.approx(ratio)
    }


@pytest.mark.parametrize("end, status", [(0.811, GREEN), (0.94, AMBER)])
def test_images_that_improve_little_are_green_and_those_that_improve_nothing_are_not(end, status):
    pair = made_pair(shift=2.0, kind="image")
    report = replace(pair.refinement, objective_start=0.951, objective_end=end, terms={"image": (0.951, end)})
    verdict = traffic_light(measure(replace(pair, refinement=report)))
    assert verdict.status == status, verdict.reasons
    skipped = next(text for text in verdict.report()["skipped"] if text.startswith("objective, end"))
    assert skipped.endswith("no structures were refined")


def test_what_is_wrong_with_a_pair_is_measured():
    good = made_pair()
    assert measure(replace(good, moving_representation=0 * good.moving))["structure"] == 0.0
    assert measure(replace(good, covered=torch.zeros_like(good.covered)))["coverage"] == 0.0
    assert measure(replace(good, moving_representation=0.5 * good.moving))["ambiguity"] > 0.5
    half = good.moving.clone()
    half[:, :10] = 0
    assert measure(replace(good, moving_representation=half))["volume_ratio"] == pytest.approx(2.0, rel=0.15)
    folded = good.ddf.clone()
    folded[0, 8:12] = -3.0 * torch.arange(4.0).view(4, 1, 1)
    assert measure(replace(good, ddf=folded))["folding"] > 0.01


def test_without_an_itn_images_are_compared_where_both_are_seen():
    good = made_pair(kind="image", shift=1.0)
    metrics = measure(good)
    assert metrics["correlation"] > 0.99 and "overlap" not in metrics and "ambiguity" not in metrics
    assert measure(replace(good, moving=1 - good.moving))["correlation"] < -0.99
    low, high = good.covered.clone(), good.covered.clone()
    low[10:], high[:5] = False, False  # 10 and 15 of 20 voxels, 5 in common
    assert measure(replace(good, covered=low))["coverage"] == 1.0
    assert measure(replace(good, covered=low, viewed=high))["coverage"] == pytest.approx(0.5)


# --- picture ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 26), (20, 24, 18)])
@pytest.mark.parametrize("kind", ["mask", "map", "image"])
@pytest.mark.parametrize("refined", [True, False])
def test_a_page_of_every_kind(size, kind, refined):
    pair = made_pair(size, 1.5, kind=kind)
    pair = pair if refined else replace(pair, refinement=None)
    begin = time.process_time()
    page = page_picture(pair, traffic_light(measure(pair)))
    assert time.process_time() - begin < 20  # about 1 second; machines differ, and how busy they are
    assert page.width == 1800 and 600 < page.height < 1600
    assert len(planes_of(pair)) == (1 if len(size) == 2 else 3)
    assert len(np.unique(np.asarray(page).reshape(-1, 3), axis=0)) > 500


def test_planes_go_through_the_structure_and_show_its_axes_the_right_way():
    pair = made_pair((20, 24, 18), kind="mask")
    marked = torch.zeros(1, 20, 24, 18)
    marked[0, 4, 15, 7] = 1.0
    planes = planes_of(replace(pair, fixed_representation=marked))
    assert [plane.of(marked[0]).max() for plane in planes] == [1.0] * 3
    assert planes[0].of(marked[0]).argmax() == 15 * 20 + 4  # rows along the second axis, columns along the first


def test_an_empty_representation_and_a_folded_field_can_be_drawn():
    pair = made_pair()
    folded = pair.ddf.clone()
    folded[0, 8:12] = -3.0 * torch.arange(4.0).view(4, 1, 1)
    empty = replace(pair, moving_representation=0 * pair.moving, fixed_representation=0 * pair.fixed, ddf=folded)
    verdict = traffic_light(measure(empty))
    assert verdict.status == RED
    yellow = (np.asarray(page_picture(empty, verdict)).astype(int) == [240, 228, 66]).all(-1)
    assert yellow.sum() > 50


def test_the_jacobian_determinant_is_computed_once_for_metrics_and_page(monkeypatch):
    calls = []

    def counted(ddf):
        calls.append(1)
        return jacobian_determinant(ddf)

    for module in ("metrics", "qa.measures"):
        monkeypatch.setattr(f"istn_monai.{module}.jacobian_determinant", counted)
    pair = made_pair((30, 26))
    page_picture(pair, traffic_light(measure(pair)))
    assert len(calls) == 1


def test_a_status_has_one_color_everywhere(tmp_path):
    """The cohort's badges and the page's dots, by hand."""
    colors = {"green": "#009e73", "amber": "#e69f00", "red": "#cc3311"}
    reports = [traffic_light(GOOD | change).report() for change in ({}, {"sdlogj": 0.6}, {"ambiguity": 0.9})]
    entries = [Entry(report["status"], "", report) for report in reports]
    text = write_cohort(entries, tmp_path / "qa.html").read_text(encoding="utf-8")
    pair = made_pair((30, 26))
    for status, change in zip(STATUSES, ({}, {"sdlogj": 0.6}, {"ambiguity": 0.9}), strict=True):
        assert re.search(f'background:{colors[status]};color:#[0-9a-f]+">{status}<', text)
        page = np.asarray(page_picture(pair, traffic_light(GOOD | change))).astype(int)
        own = [int(colors[status][k : k + 2], 16) for k in (1, 3, 5)]
        assert (page[:150, :150] == own).all(-1).sum() > 200  # the large dot in the header


def test_no_figure_of_pyplot_is_made():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    pair = made_pair((30, 26))
    page_picture(pair, traffic_light(measure(pair)))
    assert pyplot.get_fignums() == before


def test_the_objective_is_drawn_without_formulas_but_with_its_power_of_ten(monkeypatch):
    """Setting formulas is slow; the power is still there to be read."""
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", None)
    pair = made_pair((30, 26))
    trace = [3e-4 / (1 + step) for step in range(len(pair.refinement.trace))]
    figure = draw_page(
        replace(pair, refinement=replace(pair.refinement, trace=tuple(trace))), traffic_light(measure(pair))
    )
    FigureCanvasAgg(figure).draw()
    assert "×10⁻⁴" in [axes.yaxis.get_offset_text().get_text() for axes in figure.axes]


def in_turns(pair: RegisteredPair) -> RegisteredPair:
    """With a report of two levels of 4 steps, the second at a finer stride: its objectives are larger."""
    trace = (0.5, 0.4, 0.2, 0.3, 0.35, 0.9, 0.8, 0.6, 0.7)
    terms = {"structures": (0.5, 0.2), "image": (0.4, 0.3), "bending": (0.0, 0.0224)}
    report = replace(pair.refinement, steps=5, trace=trace, levels=((4, 4), (2, 4)), terms=terms)
    return replace(pair, refinement=report)


def plot_of(pair: RegisteredPair):
    """The axes of the objective, drawn."""
    figure = draw_page(pair, traffic_light(measure(pair)))
    FigureCanvasAgg(figure).draw()
    return next(axes for axes in figure.axes if axes.get_xlabel().startswith("step"))


def test_each_level_of_a_refinement_in_turns_is_a_line_of_its_own_with_its_best_iterate():
    axes = plot_of(in_turns(made_pair((30, 26))))
    lines = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert lines == [
        [[1.0, 0.4], [2.0, 0.2], [3.0, 0.3], [4.0, 0.35]],
        [[5.0, 0.9], [6.0, 0.8], [7.0, 0.6], [8.0, 0.7]],
    ]
    kept = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert kept == [[[2.0, 0.2]], [[7.0, 0.6]]]
    said = [text.get_text() for text in axes.texts]
    assert said[:2] == ["level 1\nstride 4", "level 2\nstride 2"] and not any("kept: step" in text for text in said)
    assert "each level" in axes.get_xlabel()


@pytest.mark.parametrize("change", [in_turns, lambda pair: pair], ids=["in turns", "at once"])
def test_texts_of_the_objective_do_not_overlap(change):
    axes = plot_of(change(made_pair((30, 26))))
    texts = [*axes.texts, axes.xaxis.label, *axes.get_xticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 5
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_level_for_which_there_was_no_time_is_empty():
    pair = in_turns(made_pair((30, 26)))
    trace = (*pair.refinement.trace[:5], *[float("nan")] * 4)
    axes = plot_of(replace(pair, refinement=replace(pair.refinement, trace=trace)))
    assert len([line for line in axes.lines if line.get_marker() == "o"]) == 1


@pytest.mark.parametrize("kind, shown", [("image", False), ("mask", True)])
def test_without_a_network_one_pass_is_no_picture(kind, shown):
    pair = made_pair((30, 26), shift=1.0, kind=kind)
    titles = [column.title for column in columns_of(replace(pair, one_pass=0 * pair.ddf))]
    assert ("M, one pass" in titles) == shown and "M, refined" in titles
    assert "M, one pass" in [column.title for column in columns_of(pair)]  # of a network, also one without an ITN


def test_the_package_imports_without_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import istn_monai.__main__, istn_monai.workflow.evaluation"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- cohort ----------------------------------------------------------------------------------------------------------


def test_cohort_is_self_contained_and_worst_first(tmp_path):
    picture = jpeg(Image.new("RGB", (1800, 900), "white"))
    reports = {status: traffic_light(GOOD | change).report() for status, change in zip(
        STATUSES, ({}, {"sdlogj": 0.6}, {"ambiguity": 0.9}), strict=True
    )}  # fmt: skip
    entries = [Entry(f"pair_{status}", "a → <b>", report, picture) for status, report in reports.items()]
    entries.append(Entry("pair_none", "", None, error="moving_image: no such file"))
    text = write_cohort(entries, tmp_path / "qa.html").read_text(encoding="utf-8")
    assert re.findall(r'<details id="(\w+)"', text) == ["pair_none", "pair_red", "pair_amber", "pair_green"]
    assert re.findall(r'<details id="\w+"( open)?>', text) == [" open", " open", " open", ""]
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text and "url(" not in text
    assert "a → &lt;b&gt;" in text and "<b>" not in text and text.count("data:image/jpeg;base64,") == 3


def test_a_cohort_has_the_columns_that_some_pair_has(tmp_path):
    intensities = {"correlation": 0.61, "objective_images": 0.8, "sdlogj": 0.2}
    reports = [traffic_light(metrics).report() for metrics in (intensities, {"sdlogj": 0.3})]
    entries = [Entry(str(number), "", report) for number, report in enumerate(reports)]
    text = write_cohort([*entries, Entry("2", "", None)], tmp_path / "qa.html").read_text(encoding="utf-8")
    heads = re.findall("<th>(.*?)</th>", text)
    assert len(heads) == 3 + len(intensities) and "ambiguity in M′ and F′" not in heads
    assert text.count("<td>–</td>") == 2 + 3 and "0.610" in text


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two balls on anisotropic grids, with labels, and a network of random weights."""
    folder = tmp_path_factory.mktemp("qa")
    pair = {}
    for side, shift in (("moving", 1), ("fixed", 0)):
        label = ball((18, 20, 17), (9 + shift, 10, 8), 5)
        affine = np.diag([1.0, 1.3, 1.1, 1.0])
        noise = np.random.default_rng(shift).normal(0, 0.1, label.shape)
        pair[f"{side}_image"] = write_nifti(folder / f"{side}.nii.gz", (label + noise).astype(np.float32), affine)
        pair[f"{side}_label"] = write_nifti(folder / f"{side}_label.nii.gz", label, affine)
    return pair, random_checkpoint(folder / "models", SETTINGS)


def images(pair):
    return {key: pair[key] for key in ("moving_image", "fixed_image")}


@pytest.mark.parametrize("refine_steps", [0, 4])
def test_register_writes_page_and_report(files, tmp_path, refine_steps):
    pair, settings = files
    register_files(Registration(refine_steps=refine_steps, **settings), tmp_path, **images(pair))
    report = json.loads(
        (tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )  # no NaN in JSON
    assert report["qa"]["status"] in STATUSES and {"reasons", "skipped", "metrics"} <= set(report["qa"])
    assert ("objective" in report["qa"]["metrics"]) == (refine_steps > 0)
    assert set(report["metrics"]) == set(FIELD_METRICS)
    assert report["metrics"].items() <= report["qa"]["metrics"].items()
    assert len(report["refinement"]["trace"]) == refine_steps + 1
    with Image.open(tmp_path / "qa.png") as page:
        assert page.size[0] == 1800


def test_qa_false_writes_none_and_needs_no_matplotlib(files, tmp_path, monkeypatch):
    pair, settings = files
    monkeypatch.setitem(sys.modules, "istn_monai.qa.page", None)
    registration = Registration(refine_steps=0, **settings, qa=False)
    datalist = write_json(tmp_path / "pairs.json", {"testing": [images(pair)]})
    assert register_datalist(registration, datalist, "testing", tmp_path / "all") == []
    assert "qa" not in json.loads((tmp_path / "all" / "pair_0000" / "report.json").read_text(encoding="utf-8"))
    assert not list(tmp_path.rglob("qa.*"))
    with pytest.raises(ImportError, match="--qa False"):
        register_files(Registration(refine_steps=0, **settings), tmp_path / "one", **images(pair))


def test_a_datalist_gives_one_page_with_the_pairs_that_failed(files, tmp_path):
    pair, settings = files
    absent = images(pair) | {"moving_image": str(tmp_path / "absent.nii.gz")}
    datalist = write_json(tmp_path / "pairs.json", {"testing": [images(pair), absent]})
    failures = register_datalist(Registration(refine_steps=0, **settings), datalist, "testing", tmp_path / "all")
    text = (tmp_path / "all" / "qa.html").read_text(encoding="utf-8")
    assert len(failures) == 1 and "no such file" in text
    assert re.findall(r'<details id="(\w+)"', text) == ["pair_0001", "pair_0000"]


@pytest.mark.parametrize("qa", [True, False])
def test_refinement_in_the_bundle(files, tmp_path, qa):
    pair, settings = files
    config = [str(CONFIGS / f"{name}.json") for name in ("inference", "refine")]
    run(
        run_id="refinement",
        config_file=config,
        output_dir=str(tmp_path),
        refine_steps=3,
        qa=qa,
        **images(pair),
        **settings,
    )
    assert (tmp_path / "qa.png").exists() == qa


@pytest.mark.parametrize("qa", [True, False])
def test_evaluation_in_the_bundle(files, tmp_path, qa):
    pair, settings = files
    write_json(tmp_path / "pairs.json", {"testing": [pair]})
    config = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    places = {"dataset_dir": str(tmp_path), "data_list_file": "pairs.json", "output_dir": str(tmp_path / "out")}
    run(run_id="evaluation", config_file=config, refine_steps=3, qa=qa, **places, **settings)
    page = tmp_path / "out" / "qa.html"
    assert page.exists() == qa
    evaluated = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(evaluated["qa"]) == (["pair_0000"] if qa else [])
    if qa:
        text = page.read_text(encoding="utf-8")
        assert text.count('src="data:image/jpeg;base64,') == text.count('class="istn-view"') == 1


# --- real data and shipped weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registration():
    return Registration(refine_steps=50, device="cpu")


@pytest.fixture(scope="module")
def real(hippocampus):
    pair = json.loads((hippocampus / "pairs_100.json").read_text(encoding="utf-8"))["testing"][1]
    return {key: str(hippocampus / path) for key, path in pair.items()}


def light_of(registration, folder, moving, fixed) -> str:
    """The status of a pair, or "refused"."""
    try:
        register_files(registration, folder, moving_image=moving, fixed_image=fixed)
    except Exception as error:
        assert isinstance(foreseen_cause(error), ValueError)
        return "refused"
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["qa"]["status"]


def test_a_good_pair_is_not_red(registration, real, tmp_path):
    assert light_of(registration, tmp_path, real["moving_image"], real["fixed_image"]) in (GREEN, AMBER)


def without_soi(image, label):
    """What of an image lies behind its structure, along the second axis or the first."""
    found = np.argwhere(label > 0)
    blocks = [image[found[:, 0].max() + 1 :], image[: found[:, 0].min()], image[..., found[:, 2].max() + 1 :]]
    return max(blocks, key=np.size)


def wrong_inputs(real):
    """Moving images that cannot be registered to the fixed one."""
    image, label = (np.asanyarray(nib.load(real[f"moving_{kind}"]).dataobj) for kind in ("image", "label"))
    rng = np.random.default_rng(0)
    return {
        "noise": rng.random(image.shape),
        "upside down": np.flip(image, 2),
        "inverted": image.max() - image,
        "no structure": without_soi(image, label),
    }


@pytest.mark.parametrize("name", ["noise", "upside down", "inverted", "no structure"])
def test_a_wrong_image_is_red(registration, real, tmp_path, name):
    moving = write_nifti(tmp_path / "moving.nii.gz", wrong_inputs(real)[name].astype(np.float32), np.eye(4))
    assert light_of(registration, tmp_path / "out", moving, real["fixed_image"]) == RED


def test_another_anatomy_and_a_shift_out_of_view_are_red_or_refused(registration, real, tmp_path):
    if BRAIN.is_dir():
        assert light_of(registration, tmp_path / "brain", str(sorted(BRAIN.iterdir())[0]), real["fixed_image"]) == RED
    moving = nib.load(real["fixed_image"])
    world = Registration(refine_steps=0, device="cpu", initial_alignment="world")
    for axis, wanted in ((0, "refused"), (1, RED)):  # 40 mm is more than the one side, less than the other
        affine = moving.affine.copy()
        affine[axis, 3] += 40
        shifted = write_nifti(tmp_path / f"shifted_{axis}.nii.gz", np.asanyarray(moving.dataobj), affine)
        assert light_of(world, tmp_path / f"shift_{axis}", shifted, real["fixed_image"]) == wanted
