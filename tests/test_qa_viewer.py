"""The viewer of a registered pair: what it holds, how large it is, and, in a browser, what its controls do."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import rand, random_checkpoint, write_json, write_nifti
from PIL import Image
from test_qa import SETTINGS, made_pair

from istn_monai.qa import View, show
from istn_monai.qa.cohort import Entry, entry_of, write_cohort
from istn_monai.qa.measures import RegisteredPair
from istn_monai.qa.panels import planes_of
from istn_monai.qa.rules import traffic_light
from istn_monai.qa.sprites import VOXELS, mosaic, pair_view, shown_size
from istn_monai.qa.viewer import content_of, view_page
from istn_monai.registration import Registration, register_datalist, register_files

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
MEGABYTE = 1_000_000


def content(pair: RegisteredPair) -> bytes:
    return pair_view(pair, traffic_light({}))


def decoded(uri: str) -> np.ndarray:
    """The gray picture behind a data URI, rows first."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def volume_of(uri: str, size: list[int], columns: int) -> np.ndarray:
    """A mosaic taken apart again, slice by slice."""
    picture = decoded(uri)
    width, height, slices = (*size, 1)[:3]
    volume = np.zeros((width, height, slices), np.uint8)
    for z in range(slices):
        top, left = z // columns * height, z % columns * width
        volume[..., z] = picture[top : top + height, left : left + width].T
    return volume.reshape(size)


def volumes(written: bytes, kind: str = "images") -> dict[str, np.ndarray]:
    view = json.loads(written)
    return {name: volume_of(uri, view["size"], view["columns"]) for name, uri in view[kind].items()}


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_pictures_decode_to_the_slices_of_each_stage():
    pair = made_pair(shift=2.0)
    shown = volumes(content(pair))
    wanted = {
        "fixed": pair.fixed,
        "before": pair.moving,
        "one pass": pair.warped(pair.moving, pair.one_pass),
        "refined": pair.warped(pair.moving, pair.ddf),
    }
    assert list(shown) == list(wanted)
    for name, image in wanted.items():
        difference = np.abs(shown[name].astype(float) - 255 * image[0].numpy())
        assert difference.mean() < 2 and difference.max() < 30, name  # of JPEG
    assert np.abs(shown["before"].astype(float) - shown["fixed"]).max() > 200


def test_outlines_decode_exactly_and_each_channel_has_its_bit():
    pair = made_pair()
    two = torch.cat([pair.fixed_representation, pair.fixed_representation.roll(3, 1)])
    shown = volumes(content(replace(pair, fixed_representation=two)), "outlines")
    assert np.array_equal(shown["fixed"], ((two[0] > 0.5).byte() + 2 * (two[1] > 0.5).byte()).numpy())
    many = (rand(9, 20, 24, 18) > 0.9).float()
    nine = volumes(content(replace(pair, fixed_representation=many)), "outlines")["fixed"]
    assert np.array_equal(nine & 1, torch.maximum(many[0], many[8]).byte().numpy())


def test_without_a_refinement_one_pass_is_the_last_stage():
    view = json.loads(content(made_pair(shift=1.0, refinement=None)))
    assert list(view["images"]) == list(view["outlines"]) == ["fixed", "before", "one pass"]


def test_without_a_network_one_pass_is_no_stage():
    pair = made_pair(shift=1.0, kind="image")
    view = json.loads(content(replace(pair, one_pass=0 * pair.ddf)))
    assert list(view["images"]) == list(view["outlines"]) == ["fixed", "before", "refined"]


def test_it_begins_with_the_planes_of_the_page():
    pair = made_pair()
    view = json.loads(content(pair))
    for (across, up), plane in zip(view["planes"], planes_of(pair), strict=True):
        assert (across, up) == (plane.across, plane.up)
        axis = 3 - across - up
        assert view["at"][axis] == plane.index[axis]
    assert view["ends"] == [["L", "R"], ["P", "A"], ["I", "S"]] and view["spacing"] == [1.0, 1.5, 2.0]


def test_a_2d_pair_is_one_plane():
    pair = made_pair((30, 40))
    view = json.loads(content(pair))
    assert view["planes"] == [[0, 1]] and view["size"] == [30, 40] and view["columns"] == 1
    shown = volumes(content(pair))["fixed"].astype(float)
    assert np.abs(shown - 255 * pair.fixed[0].numpy()).mean() < 2


@pytest.mark.parametrize("size", [(5, 7, 11), (64, 10, 3), (6, 6, 1), (4, 9)])
def test_a_mosaic_holds_each_slice_once(size):
    volume = np.arange(np.prod(size)).reshape(size)
    picture = mosaic(volume)
    assert sorted(picture[picture > 0]) == list(range(1, volume.size))


# --- how large it is -------------------------------------------------------------------------------------------------


def test_noise_on_a_large_grid_stays_within_2_mb_and_keeps_its_extent():
    size = (130, 170, 110)
    pair = made_pair(size, moving=rand(1, *size), fixed=rand(1, *size))
    written = content(pair)
    view = json.loads(written)
    assert len(view_page(written).encode()) <= 2 * MEGABYTE
    assert np.prod(view["size"]) < np.prod(size) and view["full"] == list(size)
    assert np.multiply(view["size"], view["spacing"]) == pytest.approx(np.multiply(size, pair.spacing))
    assert np.multiply(view["at"], view["spacing"]) == pytest.approx(np.multiply(size, pair.spacing) / 2, abs=3)


def test_a_larger_grid_is_averaged_and_a_smaller_one_is_kept():
    assert shown_size((64, 48, 80), VOXELS) == (64, 48, 80)
    assert np.prod(shown_size((300, 200, 100), VOXELS)) <= VOXELS
    assert shown_size((1000, 1, 1), 10.0)[1:] == (1, 1)
    fine = torch.zeros(1, 2048, 1024)
    fine[:, ::2] = 1
    shown = volumes(content(made_pair((2048, 1024), fixed=fine)))["fixed"]
    assert shown.shape[0] < 2048 and 100 < shown.mean() < 155


# --- the page --------------------------------------------------------------------------------------------------------

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(1)>"&.nii'


def test_nothing_is_loaded_from_elsewhere():
    page = view_page(content(made_pair()))
    assert not re.findall(r"https?:|(?:src|href)=|url\(|@import|\bfetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page


def test_a_hostile_name_stays_text():
    page = view_page(content(made_pair(names=(HOSTILE, "fixed.nii"))))
    assert "<img" not in page and page.count("<script") == page.count("</script") == 2
    assert json.loads(content_of(page))["names"] == [HOSTILE, "fixed.nii"]


def test_a_notebook_gets_a_frame_with_the_whole_page(tmp_path):
    page = view_page(content(made_pair()))
    (tmp_path / "view.html").write_text(page, encoding="utf-8")
    frame = show(tmp_path)._repr_html_()
    assert isinstance(show(tmp_path), View) and frame.startswith("<iframe ") and frame.count("<") == 2
    assert frame.count('"') % 2 == 0 and "&lt;!doctype html&gt;" in frame


def test_a_folder_without_a_viewer_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="--qa True"):
        show(tmp_path)


# --- who writes it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oblique(tmp_path_factory):
    """Files of an anisotropic pair whose axes are permuted, flipped and turned, and weights; a bright ball lies to the
    right, front and top of the middle, where nothing else is."""
    folder = tmp_path_factory.mktemp("oblique")
    turn = torch.matrix_exp(torch.tensor([[0, -0.2, 0.1], [0.2, 0, -0.15], [-0.1, 0.15, 0]])).double().numpy()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -3.0], [1.0, 0, 0], [0, -1.2, 0]])
    size = (36, 30, 12)
    middle = (np.array(size) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    points = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(size) - middle[:, None, None, None])
    ball = (np.linalg.norm(points - np.array([6.0, 7, 5])[:, None, None, None], axis=0) < 4).astype(np.float32)
    pair = {f"{side}_image": write_nifti(folder / f"{side}.nii.gz", ball, affine) for side in ("moving", "fixed")}
    settings = SETTINGS | {"spatial_size": [32, 28, 20], "spacing": [1.0, 1.3, 1.7]}
    return pair, random_checkpoint(folder / "models", settings)


def test_an_oblique_anisotropic_pair_lies_along_the_patient(oblique, tmp_path):
    pair, settings = oblique
    register_files(Registration(refine_steps=2, **settings), tmp_path, **pair)
    view = json.loads(content_of((tmp_path / "view.html").read_text(encoding="utf-8")))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    grid = report["registration_grid"]
    assert view["size"] == grid["shape"] and "view.html" in report["files"]
    assert view["spacing"] == pytest.approx(np.linalg.norm(np.array(grid["affine"])[:3, :3], axis=0))
    fixed = volume_of(view["images"]["fixed"], view["size"], view["columns"])
    found = np.argwhere(fixed > 128).mean(0)
    world = nib.affines.apply_affine(np.array(grid["affine"]), found)
    assert world == pytest.approx([6, 7, 5], abs=1.0)
    assert all(found > np.array(view["size"]) / 2)  # towards R, A and S, the second of each axis' ends


def test_qa_false_writes_no_viewer(oblique, tmp_path):
    pair, settings = oblique
    register_files(Registration(refine_steps=0, **settings, qa=False), tmp_path, **pair)
    assert not (tmp_path / "view.html").exists()


def test_the_page_of_a_cohort_has_the_viewers_of_its_pairs(oblique, tmp_path):
    pair, settings = oblique
    datalist = write_json(tmp_path / "pairs.json", {"testing": [pair]})
    registration = Registration(refine_steps=0, **settings)
    assert register_datalist(registration, datalist, "testing", tmp_path / "all") == []
    own = (tmp_path / "all" / "pair_0000" / "view.html").read_text(encoding="utf-8")
    cohort = (tmp_path / "all" / "qa.html").read_text(encoding="utf-8")
    assert content_of(cohort) == content_of(own) != b""
    assert '<details class="istn-open"><summary>' in cohort  # closed, hence decoded later
    (tmp_path / "all" / "pair_0000" / "view.html").unlink()  # as of an earlier version
    assert entry_of(tmp_path / "all" / "pair_0000").view == b""


def test_a_cohort_beyond_its_size_has_the_viewers_of_the_worst(tmp_path, monkeypatch):
    view = content(made_pair())
    monkeypatch.setattr("istn_monai.qa.cohort.VIEWS", 1.5 * len(view))
    good, bad = ({"status": status, "reasons": [], "metrics": {}} for status in ("green", "red"))
    entries = [Entry("good", "", good, view=view), Entry("bad", "", bad, view=view)]
    page = write_cohort(entries, tmp_path / "qa.html").read_text(encoding="utf-8")
    assert page.count('class="istn-view"') == 1
    assert page.index('id="bad"') < page.index('class="istn-view"') < page.index('id="good"')
    assert "view.html in the folder of this pair" in page.partition('id="good"')[2]


# --- in a browser ----------------------------------------------------------------------------------------------------

TOOLS = """
const found = {}, roots = document.querySelectorAll(".istn-view"), root = roots[0];
const press = (target, key) => target.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input", {bubbles: true})); };
const texts = () => [...root.querySelectorAll(".istn-plane output")].map((one) => one.textContent);
const canvases = () => [...root.querySelectorAll(".istn-plane canvas")];
const gray = (canvas, x, y) => [...canvas.getContext("2d").getImageData(
  Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data].slice(0, 3);
const done = () => { document.title = "done"; document.body.append(Object.assign(document.createElement("pre"),
  {id: "found", textContent: btoa(JSON.stringify(found))})); };
"""


def in_browser(page: str, steps: str, file) -> dict:
    """What JavaScript finds on a page, from a file."""
    tried = f"try {{ {steps} }} catch (e) {{ found.error = `${{e}}` }} done();"
    script = f"<script>{TOOLS}(async () => {{ {tried} }})()</script>"
    file.write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--dump-dom"]
    options += [f"--user-data-dir={file.parent / 'profile'}"]
    for budget in (5_000, 50_000, 500_000):  # ms of virtual time, which does not wait for pictures to be decoded
        command = [CHROMIUM, *options, f"--virtual-time-budget={budget}", file.as_uri()]
        ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
        result = re.search(r'<pre id="found">([^<]*)</pre>', ended.stdout)
        if result:
            break
    assert result, ended.stderr[-2000:]
    found = json.loads(base64.b64decode(result.group(1)))
    assert "error" not in found, found
    return found


@browser
def test_sliders_keys_and_wheel_move_slices_and_space_toggles(tmp_path):
    steps = """
    await root.view.ready;
    const [axial, coronal] = canvases(), sliders = root.querySelectorAll(".istn-plane input");
    found.start = texts();
    press(axial, "ArrowUp"); press(coronal, "ArrowLeft"); found.keys = texts();
    press(axial, "Home"); press(axial, "ArrowDown"); press(coronal, "End"); found.ends = texts();
    set(sliders[2], 4); found.slider = texts();
    axial.dispatchEvent(new WheelEvent("wheel", {deltaY: -120, cancelable: true, bubbles: true}));
    found.wheel = texts();
    const stage = () => [root.view.stage, root.querySelector("button").getAttribute("aria-pressed"),
      root.querySelector("input[type=radio]:checked").value];
    found.stages = [stage()];
    press(axial, " "); found.stages.push(stage());
    press(sliders[0], " "); found.stages.push(stage());
    root.querySelector("input[value='one pass']").click(); press(axial, " "); press(axial, " ");
    found.stages.push(stage());
    press(root.querySelector("button"), " "); found.stages.push(stage());
    found.label = axial.getAttribute("aria-label"); axial.focus(); found.focused = document.activeElement === axial;
    """
    found = in_browser(view_page(content(made_pair(shift=2.0))), steps, tmp_path / "view.html")
    assert found["start"] == ["10 of 18", "13 of 24", "11 of 20"]
    assert found["keys"] == ["11 of 18", "12 of 24", "11 of 20"]
    assert found["ends"] == ["1 of 18", "24 of 24", "11 of 20"]
    assert found["slider"] == ["1 of 18", "24 of 24", "5 of 20"] and found["wheel"][0] == "4 of 18"
    refined, before, one_pass = (
        ["refined", "false", "refined"], ["before", "true", "before"], ["one pass", "false", "one pass"]
    )  # fmt: skip
    assert found["stages"] == [refined, before, refined, one_pass, one_pass]  # a button has its own Space
    assert found["label"] == "axial slice 4 of 18, one pass; arrow keys move slices" and found["focused"]


@browser
def test_pixels_are_where_the_letters_say_and_modes_mix_them(tmp_path):
    size = (16, 24, 20)
    fixed, moving = torch.zeros(1, *size), torch.full((1, *size), 0.5)
    fixed[:, 8:, 12:, 10:] = 1  # towards R, A and S
    pair = made_pair(size, fixed=fixed, moving=moving, refinement=None, spacing=(2.0, 1.0, 1.0))
    steps = """
    await root.view.ready;
    root.querySelector("input[type=checkbox]").click();
    const corners = (canvas) => [[.2, .2], [.8, .2], [.2, .8], [.8, .8]].map(([x, y]) => gray(canvas, x, y));
    const [blend, tile] = ["Blend", "Size"].map((name) => root.querySelector(`input[aria-label^=${name}]`));
    for (const plane of root.view.planes) plane.move(15);
    set(blend, 0); found.fixed = canvases().map(corners);
    found.shapes = canvases().map((c) => c.clientWidth / c.clientHeight);
    found.letters = [...root.querySelectorAll(".istn-picture")].map((p) => p.innerText.replace(/\\s/g, ""));
    set(blend, 100); found.moving = corners(canvases()[0]);
    root.querySelector("input[value=colors]").click(); found.colors = corners(canvases()[0]);
    root.querySelector("input[value=checkerboard]").click(); set(tile, 16);
    found.checkerboard = [[.1, .1], [.75, .1]].map(([x, y]) => gray(canvases()[0], x, y));
    found.hidden = [blend, tile].map((input) => input.closest("label").hidden);
    """
    found = in_browser(view_page(content(pair)), steps, tmp_path / "view.html")
    for corners in found["fixed"]:  # bright in the upper left alone: right or front, and front or top
        bright, *dark = (corner[0] for corner in corners)
        assert bright > 230 and max(dark) < 25
    assert found["letters"] == ["RLAP", "RLSI", "APSI"]
    assert found["shapes"] == pytest.approx([32 / 24, 32 / 20, 24 / 20], rel=0.01)
    assert np.abs(np.array(found["moving"]) - 128).max() < 6
    assert found["colors"][0] == pytest.approx([128, 255, 128], abs=25)  # moving is magenta, fixed is green
    assert found["colors"][3] == pytest.approx([128, 0, 128], abs=25)
    assert found["checkerboard"][0][0] > 230 and found["checkerboard"][1][0] == pytest.approx(128, abs=12)
    assert found["hidden"] == [True, False]


@browser
def test_outlines_are_green_magenta_and_white_where_they_agree(tmp_path):
    size = (16, 16)
    fixed, moving = torch.zeros(1, *size), torch.zeros(1, *size)
    fixed[:, 4:12, 4:12] = moving[:, 4:8, 4:12] = 1
    dark = torch.zeros(1, *size)
    pair = made_pair(
        size, fixed=dark, moving=dark, fixed_representation=fixed, moving_representation=moving, spacing=(1.0, 1.0)
    )
    steps = """
    await root.view.ready;
    const [canvas] = canvases();
    found.planes = canvases().length; found.sliders = texts().length;
    const at = () => [[.25, .5], [.5, .5], [.75, .5]].map(([x, y]) => gray(canvas, x, y));
    found.shown = at(); root.querySelector("input[type=checkbox]").click(); found.off = at();
    """
    found = in_browser(view_page(content(pair)), steps, tmp_path / "view.html")
    assert (found["planes"], found["sliders"]) == (1, 0)
    green, magenta, white = found["shown"]
    assert (
        green[1] > 1.5 * max(green[0], green[2]) and min(magenta[0], magenta[2]) > 2 * magenta[1] and min(white) > 150
    )
    assert found["off"] == [[0, 0, 0]] * 3


@browser
def test_a_viewer_of_a_cohort_is_decoded_when_it_is_opened_and_names_stay_text(tmp_path):
    view = content(made_pair(names=(HOSTILE, "fixed.nii")))
    report = {"status": "green", "reasons": [], "metrics": {}}
    file = write_cohort([Entry(f"pair_{n}", HOSTILE, report, view=view) for n in range(2)], tmp_path / "qa.html")
    steps = """
    found.before = [...roots].map((one) => Boolean(one.view));
    root.closest("details.istn-open").parentElement.open = true; root.closest("details.istn-open").open = true;
    await new Promise((resolve) => setTimeout(resolve, 200)); await root.view.ready;
    found.after = [...roots].map((one) => Boolean(one.view)); found.width = canvases()[0].width;
    found.images = document.images.length; found.text = root.querySelector("p").textContent;
    """
    found = in_browser(file.read_text(encoding="utf-8"), steps, tmp_path / "page.html")
    assert found["before"] == [False, False] and found["after"] == [True, False]
    assert found["width"] > 100 and found["images"] == 0 and HOSTILE in found["text"]
