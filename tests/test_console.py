"""What long commands say: lines and bars, on terminals and elsewhere, and what is kept of it."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import small_istn
from ignite.engine import Engine, Events
from monai.inferers import SimpleInferer

from istn_monai.__main__ import main
from istn_monai.inferer import RefineInferer
from istn_monai.network_settings import NetworkSettings
from istn_monai.pace import Pace, paced
from istn_monai.synthetic.pairs import synthesize
from istn_monai.workflow import console, how_to
from istn_monai.workflow.checkpoints import UNTRAINED, Checkpoints
from istn_monai.workflow.curves import LINE, SHOWN, captioned, enlarged
from istn_monai.workflow.epoch_lines import EpochLineHandler
from istn_monai.workflow.start import in_force
from istn_monai.workflow.training import ProgressHandler


def test_lines_go_to_the_terminal_unless_it_shall_be_quiet(capsys, monkeypatch):
    console.say("heard")
    monkeypatch.setenv("ISTN_OUTPUT", "quiet")
    console.say("not heard")
    assert capsys.readouterr().out == "heard\n"


def test_only_the_first_process_says_something(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    console.say("said")
    console.note("noted", tmp_path)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_the_log_goes_on_after_an_interruption(tmp_path):
    console.note("one", tmp_path)
    console.note("two", tmp_path)
    lines = (tmp_path / "training.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ")[1] for line in lines] == ["one", "two"]
    time.strptime(lines[0].split("  ")[0], "%Y-%m-%d %H:%M:%S")


def test_a_log_that_cannot_be_written_does_not_end_a_training(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        console.note("one", tmp_path / "missing")
    assert "no line in training.log" in caplog.text


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: ``clock[0]``, in seconds."""
    now = [0.0]
    for module in ("pace", "workflow.console"):
        monkeypatch.setattr(f"istn_monai.{module}.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number, said", [(1, []), (3, [1, 2, 3]), (25, [1, 4, 7, 10, 13, 16, 19, 22, 25])])
def test_without_a_terminal_items_are_counted_in_lines(capsys, clock, number, said):
    assert list(console.counted(range(number), "evaluating")) == list(range(number))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"evaluating: pair {n} of {number}" for n in said] and captured.err == ""


def test_an_item_is_announced_before_it_begins_and_slow_ones_one_by_one(capsys, clock):
    items = console.counted(range(25), "evaluating")
    for said in ("pair 1 of 25", "", "pair 3 of 25", "pair 4 of 25"):  # the second one takes 157 s
        next(items)
        assert capsys.readouterr().out == (f"evaluating: {said}\n" if said else "")
        clock[0] += 157 if not said else 1


def test_a_pace_is_a_line_after_a_while_with_the_time_that_is_left(capsys, clock, monkeypatch):
    pace = Pace("epoch 1", 40, every=30, say=console.say)
    for step, seconds in ((1, 20), (2, 29), (5, 31), (6, 60), (20, 100), (40, 200)):
        clock[0] = seconds
        pace(step, f", loss {1 / step:.2f}")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1: step 5 of 40, loss 0.20, about 4 min left",
        "epoch 1: step 20 of 40, loss 0.05, about 2 min left",
    ]
    monkeypatch.setenv("ISTN_OUTPUT", "quiet")
    clock[0] = 1000
    pace(30)
    assert capsys.readouterr().out == ""


def test_what_comes_before_the_first_step_of_a_refinement_is_none_of_its_time(capsys, clock):
    """The network of a large pair takes a minute, a step two seconds."""
    inferer = SimpleNamespace(refiner=SimpleNamespace(steps=40, on_step=None))
    with console.refining(inferer):
        for step in range(20):
            clock[0] = 60 + 2 * step
            inferer.refiner.on_step()
    assert capsys.readouterr().out == "refining: step 15 of 40, about 50 s left\n"


def test_reading_says_how_many_there_are_and_then_each_twenty_seconds(capsys, clock):
    for _ in paced(range(8), "reading data", "subject"):
        clock[0] += 7
    assert capsys.readouterr().out.splitlines() == [
        "reading data: 8 subjects",
        "reading data: subject 3 of 8, about 35 s left",
        "reading data: subject 6 of 8, about 14 s left",
    ]


def test_a_registration_says_what_it_does_before_it_does_it(capsys, monkeypatch):
    files = {"moving_image": "data/a.nii.gz", "fixed_image": "b.nii.gz", "moving_label": None}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    console.begin_pair(files, RefineInferer(steps=384), torch.device("cpu"))
    console.begin_pair(files, SimpleInferer(), torch.device("cpu"))
    assert capsys.readouterr().out.splitlines() == [
        "registering a.nii.gz to b.nii.gz: 384 steps of refinement on cpu (2 threads)",
        "registering a.nii.gz to b.nii.gz: one pass on cpu (2 threads)",
    ]


def test_on_a_terminal_items_have_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert console.bars() and list(console.counted(range(3), "evaluating")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "evaluating: 100%" in captured.err and captured.out == ""
    monkeypatch.setenv("ISTN_OUTPUT", "quiet")
    assert not console.bars()


@pytest.mark.parametrize("output, level", [(None, logging.CRITICAL), ("verbose", logging.INFO)])
def test_engines_are_heard_when_it_shall_be_verbose(monkeypatch, output, level):
    if output:
        monkeypatch.setenv("ISTN_OUTPUT", output)
    console.calm()
    assert logging.getLogger("ignite.engine.engine.SupervisedTrainer").getEffectiveLevel() == level


def test_an_interruption_is_no_error_in_the_log(caplog):
    def interrupted(engine, batch):
        raise KeyboardInterrupt

    console.calm()
    with pytest.raises(KeyboardInterrupt):
        Engine(interrupted).run([1])
    assert not caplog.records


# --- epochs -----------------------------------------------------------------------------------------------------------


def run_epochs(folder, epochs: int, start: int = 0) -> None:
    """A trainer that does nothing, validated every second epoch, at 10 s an epoch."""
    state = SimpleNamespace(key_metric_name="dice", epoch=0, metrics={"dice": 0.25})
    evaluator, known = SimpleNamespace(state=state), SimpleNamespace(best=0.25, best_epoch=0)
    trainer = Engine(lambda engine, batch: None)

    def begin(engine):
        engine.state.epoch = start

    def validate(engine):
        engine.state.metrics["train_loss"] = 1 / engine.state.epoch
        if engine.state.epoch % 2 == 0:
            state.epoch, state.metrics["dice"] = engine.state.epoch, 0.5
            known.best, known.best_epoch = 0.5, 2

    trainer.add_event_handler(Events.STARTED, begin)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    EpochLineHandler(folder, evaluator, known).attach(trainer)
    trainer.run([0], max_epochs=epochs)


@pytest.fixture
def ten_seconds(monkeypatch):
    """A clock that goes on by 10 s whenever it is looked at."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("istn_monai.workflow.epoch_lines.time.monotonic", lambda: next(clock))


def test_each_epoch_has_a_line_with_loss_dice_and_the_time_that_is_left(tmp_path, capsys, ten_seconds):
    run_epochs(tmp_path, 12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "before training  validation Dice 0.2500",
        "epoch  1/12  loss 1.0000  10 s  left 2 min",
        "epoch  2/12  loss 0.5000  validation Dice 0.5000 (best 0.5000, epoch 2)  10 s  left 2 min",
    ]
    assert lines[-1].startswith("epoch 12/12") and "left" not in lines[-1] and len(lines) == 13
    kept = (tmp_path / "training.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in kept] == lines


def test_a_training_that_goes_on_counts_its_own_epochs_for_the_time_left(tmp_path, capsys, ten_seconds):
    run_epochs(tmp_path, 12, start=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "going on after epoch 8 of 12" and lines[1].endswith("10 s  left 30 s")


def test_a_training_that_is_longer_than_wanted_says_so(tmp_path, capsys, ten_seconds):
    run_epochs(tmp_path, 1, start=3)
    assert capsys.readouterr().out.splitlines() == ["trained already for 3 epochs, max_epochs is 1"]


def test_a_training_that_learned_nothing_says_so_and_what_to_do():
    checkpoints = object.__new__(Checkpoints)
    checkpoints.best, checkpoints.best_epoch, checkpoints.best_file = 0.5, 0, "model.pt"
    assert checkpoints.report().endswith(UNTRAINED) and "max_epochs" in UNTRAINED
    checkpoints.best_epoch = 3
    assert checkpoints.report() == "best validation Dice 0.5000, epoch 3, checkpoint model.pt"


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_three_times_larger_and_have_a_caption():
    row = torch.rand(3, 40, 5 * 48)
    large = enlarged(row)
    assert torch.equal(large[:, ::3, ::3], row) and torch.equal(large[:, 1::3, 2::3], row)
    picture = captioned(large, "validation pair 1, epoch 3")
    assert picture.shape == (3, 120 + 2 * LINE, 720) and torch.equal(picture[:, 2 * LINE :], large)
    band = picture[:, LINE : 2 * LINE]
    for number in range(len(SHOWN)):  # each picture has its name above it
        assert band[..., number * 144 : number * 144 + 60].max() > 0.9
    assert not torch.equal(picture, captioned(large, "validation pair 2, epoch 3"))


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A datalist of small pairs, and a folder to work in."""
    datalist = synthesize(tmp_path / "data", (32, 32), train=3, validation=1, test=1, image_format="nii.gz")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return datalist


def test_a_dry_run_checks_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["istn-monai", "train", str(folder), "--dry_run", "True", "--max_epochs", "3"])
    main()
    said = capsys.readouterr().out
    assert "training: 3 pairs, 1 for validation, of " in said and "would train 3 epochs of 3 steps\n" in said
    assert said.endswith("dry run: nothing was trained\n") and not list((tmp_path / "work").iterdir())


def test_a_dry_run_finds_what_is_wrong(folder, tmp_path, monkeypatch):
    next((tmp_path / "data" / "training").glob("*fixed_image*")).unlink()
    monkeypatch.setattr(sys, "argv", ["istn-monai", "train", str(folder), "--dry_run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert "training[" in str(ended.value.code) and "fixed_image" in str(ended.value.code)
    assert not list((tmp_path / "work").iterdir())


def test_a_quiet_training_says_its_last_lines_alone_and_leaves_instructions(folder, tmp_path):
    command = [sys.executable, "-m", "istn_monai", "train", str(folder), "--quiet", "--max_epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, check=True)
    assert "epoch 1/1" not in done.stdout and "validation Dice" in done.stdout
    (text,) = (tmp_path / "work").glob(f"runs/*/models/{how_to.HOW_TO}")
    run = text.parents[1].relative_to(tmp_path / "work")
    said = text.read_text(encoding="utf-8")
    assert f"--model {run} --output_dir registration" in said and str(tmp_path) not in said
    assert "epoch 1/1" in (text.parents[1] / console.LOG).read_text(encoding="utf-8")
    assert "\r" not in done.stderr and "input summary" not in done.stdout + done.stderr


def test_a_refinement_has_a_bar_of_its_steps_on_a_terminal_alone(capsys, monkeypatch):
    inferer = RefineInferer(steps=6)
    istn = small_istn((12, 10))
    with console.refining(inferer):
        inferer.refiner(istn, torch.rand(1, 2, 12, 10))
    captured = capsys.readouterr()
    assert captured.err == captured.out == "" and inferer.refiner.on_step is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.refining(inferer):
        inferer.refiner(istn, torch.rand(1, 2, 12, 10))
    assert "refining" in capsys.readouterr().err and inferer.refiner.on_step is None


def test_a_long_refinement_has_a_line_now_and_then_without_a_terminal(capsys, clock):
    inferer = RefineInferer(steps=6)
    with console.refining(inferer):
        for _ in range(6):
            clock[0] += 16
            inferer.refiner.on_step()
    assert capsys.readouterr().out.splitlines() == [
        "refining: step 2 of 6, about 64 s left",
        "refining: step 4 of 6, about 32 s left",
    ]


def test_a_long_epoch_has_a_line_now_and_then_without_a_terminal(capsys, clock):
    def step(engine, batch):
        clock[0] += 20
        return {"loss": torch.tensor(0.5)}

    trainer = Engine(step)
    ProgressHandler().attach(trainer)
    trainer.run(range(5), max_epochs=2)
    assert capsys.readouterr().out.splitlines() == [
        f"epoch {epoch}: step {done} of 5, loss 0.5000, about {left} left"
        for epoch in (1, 2)
        for done, left in ((2, "60 s"), (4, "20 s"))
    ]


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("output_dir", "file", "output_dir is not writable"),
        ("initial_weights", "file", "checkpoint"),
        ("itn_epochs", "5", "itn_epochs are the first of max_epochs 2"),
        ("itn_def", '{"_target_":"nope"}', "itn_def"),
    ],
)
def test_a_dry_run_finds_what_a_training_would_end_with(folder, tmp_path, monkeypatch, option, value, said):
    (tmp_path / "work" / "file").write_text("", encoding="utf-8")
    words = ["istn-monai", "train", str(folder), "--dry_run", "--max_epochs", "2", f"--{option}", value]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert said in str(ended.value.code)
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["file"]


def dry_run_of(folder, monkeypatch, *options: str) -> None:
    """A dry run of a small training."""
    words = ["istn-monai", "train", str(folder), "--dry_run", "--spatial_size", "[16,16]", *options]
    monkeypatch.setattr(sys, "argv", words)
    main()


def test_a_dry_run_knows_the_training_that_is_there(folder, tmp_path, monkeypatch, capsys):
    train = ["istn-monai", "train", str(folder), "--max_epochs", "1", "--spatial_size", "[16,16]"]
    subprocess.run(
        [sys.executable, "-m", "istn_monai", *train[1:]], cwd=tmp_path / "work", check=True, capture_output=True
    )
    dry_run_of(folder, monkeypatch, "--max_epochs", "1")
    said = capsys.readouterr().out
    assert "would do nothing: 1 of 1 epochs are done; give more max_epochs\n" in said and "go on" not in said
    dry_run_of(folder, monkeypatch, "--max_epochs", "3")
    said = capsys.readouterr().out
    assert "would go on after epoch 1, to 3 epochs of 3 steps\n" in said and "preparing" not in said
    with pytest.raises(SystemExit) as ended:
        dry_run_of(folder, monkeypatch, "--max_epochs", "3", "--contrast", "random")
    error = str(ended.value.code)
    assert "last.pt was made with other settings (contrast: 'own' in the checkpoint, 'random' now)" in error
    assert error.endswith("choose another --run_name, or another ckpt_dir or output_dir")
    dry_run_of(folder, monkeypatch, "--max_epochs", "3", "--contrast", "random", "--run_name", "other")
    assert "would train 3 epochs of 3 steps\n" in capsys.readouterr().out


def test_a_training_that_cannot_go_on_says_so_before_pairs_are_prepared_and_what_to_do(folder, monkeypatch, capsys):
    models = folder.parent / "there" / "models"
    models.mkdir(parents=True)
    (models / "last.pt").write_bytes(b"PK truncated")
    words = ["train", str(folder), "--spatial_size", "[16,16]", "--output_dir", str(models.parent)]
    monkeypatch.setattr(sys, "argv", ["istn-monai", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    error = str(ended.value.code)
    assert f"{models / 'last.pt'} is not a checkpoint" in error and "--run_name" in error
    assert f"move {models} away first" in error and "preparing" not in capsys.readouterr().out


NETWORKS = {"itn_def": None, "stn_def": {"_target_": "istn_monai.stn.IdentitySTN"}}


@pytest.mark.parametrize("epoch, said", [(0, "nothing is learned yet"), (2, "is epoch 2, validation Dice 0.5")])
def test_instructions_name_other_networks_and_say_if_nothing_is_learned(tmp_path, epoch, said):
    settings = SimpleNamespace(loss="e", transformation="affine", soi_labels=[[1]], spacing=1, **NETWORKS)
    best = tmp_path / "model.pt"
    text = how_to.write_how_to(SimpleNamespace(best_file=best, settings=settings, best_epoch=epoch, best=0.5))
    lines = text.read_text(encoding="utf-8").splitlines()
    assert lines[1] == "e, affine; structures [[1]]; 1 mm; stn_def identity"
    assert said in lines[2] and ("nothing is learned" in lines[2]) == (epoch == 0)


def test_the_first_lines_of_a_training_name_networks_that_are_not_the_default():
    small = {"spatial_size": (16, 16), "spacing": 1, "control_spacing": 8}
    assert "_def" not in in_force(NetworkSettings(**small))
    said = in_force(NetworkSettings(**small, itn_def="segmentation", stn_def="identity"))
    assert said.endswith(", itn_def segmentation, stn_def identity")
    assert in_force(NetworkSettings(**small, loss="s", itn_def="mind")).endswith(", itn_def mind")


def test_instructions_are_quoted_for_a_shell_and_for_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "it's {mine}"
    (run / "models").mkdir(parents=True)
    (run / "run.json").write_text("{}", encoding="utf-8")
    settings = SimpleNamespace(loss="e", transformation="bspline", soi_labels=[[1]], spacing=1, **NETWORKS)
    best = run / "models" / "model.pt"
    text = how_to.write_how_to(SimpleNamespace(best_file=best, settings=settings, best_epoch=2, best=0.5))
    said = text.read_text(encoding="utf-8")
    (line,) = [line for line in said.splitlines() if "PAIRS.json --model" in line and "evaluate" in line]
    assert shlex.split(line)[4] == "it's {mine}"
    (code,) = [line.strip() for line in said.splitlines() if line.strip().startswith("result = ")]
    assert compile(code, "how_to", "exec") and '"it\'s {mine}"' in code


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_output_that_nobody_reads_ends_no_work(monkeypatch, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(console.tqdm, "write", broken)
    console.say("lost")
    monkeypatch.setattr(sys, "stdout", None)
    console.say("lost")
