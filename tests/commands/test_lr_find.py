"""`jxfer lr-find` as a person meets it."""

import json

import cv2
import pytest

from jxfer.commands.main import main

MODEL = ("--model.arch", "resnet20", "--model.through", "stage1", "--strategy.name", "scratch")


@pytest.fixture
def command(images, tmp_path):
    source = ("--data.source", f"folder:{images}", "--batch-size", "16")
    sweep = ("--sweep.steps", "12", "--sweep.lowest", "1e-4", "--sweep.highest", "0.1")
    return ["lr-find", "--out", str(tmp_path / "sweeps" / "one"), *source, *MODEL, *sweep]


@pytest.mark.slow
def test_it_writes_a_plot_and_figures_and_leaves_no_run(command, tmp_path, capsys):
    assert main([*command, "--json"]) == 0
    out = tmp_path / "sweeps" / "one"
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "lr_find.json").read_text())
    assert figures["phase"] == "scratch"
    assert figures["rates"][0] == pytest.approx(1e-4)
    assert figures["rates"][-1] == pytest.approx(0.1)
    assert figures["suggestions"].keys() == {"steep", "minimum"}
    assert cv2.imread(str(out / "lr_find.png")).std() > 1
    assert {path.name for path in out.iterdir()} == {"lr_find.json", "lr_find.png"}

    assert main(command) == 0
    shown = capsys.readouterr().out
    for rate in figures["suggestions"].values():
        assert f"{rate:.2e}" in shown
    assert "phase scratch; 12 steps, the last" in shown


def test_what_is_wrong_is_one_line(command, tmp_path, fails):
    (tmp_path / "file").write_text("")
    for more, words in (
        (("--sweep.lowest", "1"), "--sweep.lowest 1 --sweep.highest 0.1"),
        (("--out", str(tmp_path / "file")), "name a folder"),
        (("--batch-size", "20"), "does not divide"),
        (("--accumulate", "3"), "--accumulate 3"),
    ):
        assert words in fails([*command, *more])
