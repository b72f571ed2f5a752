"""`jxfer train` and `jxfer evaluate` of a run that adapts."""

import json

import pytest

from jxfer.commands.main import main


@pytest.mark.slow
def test_the_commands_speak_of_both_domains(images, other_domain, tmp_path, fails, capsys):
    run, target = tmp_path / "run", f"folder:{other_domain}"
    options = f"--run {run} --data.source folder:{images} --strategy.name scratch --epochs 2 "
    options += "--model.arch resnet20 --model.through stage1 --batch-size 16 --adapt.method mcc "
    assert main(["train", *options.split(), "--adapt.target", target]) == 0
    captured = capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    adapt = summary["adapt"]
    train, val = adapt["target_train_examples"], adapt["target_val_examples"]
    assert train + val == 30
    start = f"adapts by mcc to {target}: {train} images without labels, {val} validation, 15 test"
    assert start in captured.err.splitlines()
    rows = {line[:24].rstrip(): line[24:].split() for line in captured.out.splitlines()}
    for name, figures, split in (
        ("source validation", summary, "val"),
        ("source test", adapt, "source_test"),
        ("target test", summary, "test"),
    ):
        accuracy, *counts = (figures[f"{split}_{f}"] for f in ("accuracy", "correct", "examples"))
        assert rows[name] == [f"{accuracy:.2%}", *map(str, counts)]

    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["correct"]) == (target, summary["test_correct"])
    assert main(["evaluate", str(run), "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == val
    assert "test or val split of its target" in fails(["evaluate", str(run), "--split", "train"])
