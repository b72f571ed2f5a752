"""`jxfer audit` as a person meets it: figures, a leak's exit code, and what bad input gets."""

import json
import re

import pytest

from jxfer.commands.main import main

SMALL = ("--model.arch", "resnet20", "--model.through", "stage1", "--batch-size", "16")


def audit(capsys, *args):
    """(exit code, what it prints)."""
    capsys.readouterr()
    code = main(["audit", *SMALL, *args])
    return code, capsys.readouterr().out


def test_a_linear_probe_of_random_weights_has_no_leak(capsys):
    code, out = audit(capsys, "--strategy.name", "linear_probe", "--classes", "3")
    assert code == 0
    first, _, *groups, _, _, step, _, verdict = out.splitlines()
    assert first == (
        "resnet20 through stage1, linear_probe: 2 images of 32 px a step on each of 8 devices, "
        "3 classes"
    )
    header, *rows = (re.split(r"\s{2,}", line) for line in groups)
    assert header[1:3] == ["group", "parameters"]
    # SGD with momentum: a float for each parameter of the head, and the schedule's counter.
    assert [row[1:4] for row in rows] == [["frozen", "14,480", "0"], ["head", "51", "208"]]
    assert [row[4] for row in rows] == ["7 frozen", "-"]
    assert rows[0][-1] == "0"
    cells = step.split()
    assert cells[0] == "linear_probe"
    assert cells[1] == cells[2]
    assert cells[5] == cells[6] == "208"
    assert verdict == "no leak"


def test_statistics_that_drift_end_with_exit_code_1(capsys, monkeypatch):
    def every_norm(labels, norm_paths, *_, **__):
        return frozenset(norm_paths)

    monkeypatch.setattr("jxfer.transfer.labels.train_layers", every_norm)
    code, out = audit(capsys, "--strategy.name", "linear_probe", "--json")
    assert code == 1
    found = json.loads(out)
    (phase,) = found["phases"]
    assert not found["ok"]
    assert any("statistics of BatchNorm that should stay" in leak for leak in phase["leaks"])
    frozen, head = phase["groups"]
    assert frozen["norms"] == {"modes": {"adapt": 7}, "bytes": 7 * 2 * 16 * 4}
    assert head["parameters"] == 16 * 10 + 10
    assert phase["least"]["optimizer_bytes"] == phase["step"]["optimizer_bytes"]


def test_the_largest_batch_and_the_next_are_told(capsys, monkeypatch):
    monkeypatch.setattr("jxfer.train.memory.limit_bytes", lambda: 10**9)
    monkeypatch.setattr("jxfer.train.fit.step_bytes", lambda plan, _, n: n * 10**7)
    wanted = {
        "phase": "scratch",
        "batch_size": 96,
        "bytes": 960_000_000,
        "next_batch_size": 112,
        "next_bytes": 1_120_000_000,
        "limit_bytes": 10**9,
    }
    args = ("--largest-batch", "--strategy.name", "scratch", "--accumulate", "2")
    code, out = audit(capsys, *args, "--json")
    assert (code, json.loads(out)) == (0, wanted)
    code, out = audit(capsys, *args)
    assert out.splitlines()[1].split() == ["scratch", "96", "0.96", "112", "1.12", "1"]


@pytest.mark.slow
def test_a_rate_of_0_ends_with_exit_code_1_and_a_line(capsys):
    code, out = audit(capsys, "--strategy.name", "full", "--optimizer.backbone-lr", "0")
    assert code == 1
    assert out.splitlines()[-1].startswith("leak in full: low_lr learns at a rate of 0")


@pytest.mark.slow
def test_a_run_with_data_and_weights_has_the_data_s_classes(capsys, images):
    args = ["--model.weights", "resnet20-cifar100", "--data.source", f"folder:{images}"]
    assert main(["audit", *args, "--strategy.name", "lp_ft", "--batch-size", "16", "--json"]) == 0
    head, everything = json.loads(capsys.readouterr().out)["phases"]
    assert [phase["phase"] for phase in (head, everything)] == ["head", "all"]
    assert head["groups"][1]["parameters"] == 64 * 3 + 3
    assert everything["step"]["flops"] > 3 * head["step"]["flops"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--classes", "1"], "--classes 1: it must be at least 2"),
        (["--classes", "3", "--data.source", "digits"], "leave one out"),
        (["--accumulate", "2"], "--accumulate: the audit is of the plain step"),
        (["--batch-size", "3"], "--batch-size 3 does not divide over 8 devices; try 8"),
        (["--strategy.name", "partial"], "--strategy.freeze-through: partial needs one of"),
        (["--augment.mixup", "0.2"], "--augment.mixup: the audit is of the plain step"),
        (["--cache.mode", "disk"], "--cache.mode: the audit is of the plain step"),
        (["--optimizer.lr", "inf"], "--optimizer.lr inf: it must be a finite number"),
        (["--model.arch", "resnet21"], "unknown architecture 'resnet21'"),
        (["--data.per-class", "3"], "unknown data source"),
    ],
)
def test_bad_input_is_one_line(args, line, fails):
    found = fails(["audit", *SMALL, *args])
    assert found.startswith("jxfer: error: ")
    assert line in found
