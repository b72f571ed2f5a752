"""`jxfer ablate`, from the file to the report."""

import json

import pytest

from jxfer.commands.main import main

CAREFUL = "seeds=(0, 1), arms=('short',), choices={'short': ({'lr': 0.05},)}, claims=()"


@pytest.fixture
def run(capsys):
    """Runs a command; returns (exit code, stdout, stderr)."""

    def call(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_table_with_its_verdict_and_its_report(run, declare, tmp_path):
    out = tmp_path / "out"
    code, told, said = run("ablate", declare(), "--out", out)
    assert code == 0, said
    results = json.loads((out / "results.json").read_text())
    cells = results["cells"]
    assert [(cell["arm"], cell["seed"]) for cell in cells] == [
        (arm, seed) for arm in ("short", "long") for seed in (0, 1, 2)
    ]
    assert {cell["status"] for cell in cells} == {"finished"}
    for cell in cells:
        summary = json.loads((out / "cells" / cell["key"] / "summary.json").read_text())
        assert cell["measures"] == {"test accuracy": 100 * summary["test_accuracy"]}
    assert results["budget"] == 1
    assert results["command"].startswith("jxfer ablate ")
    (claim,) = results["claims"]
    assert (claim["claim"], claim["pairs"]) == ("long > short", 3)
    accuracies = [cell["measures"]["test accuracy"] for cell in cells]
    assert claim["estimate"] == pytest.approx((sum(accuracies[3:]) - sum(accuracies[:3])) / 3)
    assert claim["verdict"] in told
    assert (out / "report" / "index.html").is_file()


def test_a_failed_cell_is_shown_and_does_not_stop_the_rest(run, declare, tmp_path):
    file = declare(CAREFUL + ', measures={"careless": _careless}')
    code, told, said = run("ablate", file, "--out", tmp_path / "out", "--json")
    assert code == 1
    assert "failed: images | short | seed 1: careless: ValueError: no such thing" in said
    cells = json.loads(told)["cells"]
    assert [cell["measures"].get("careless") for cell in cells] == [2.0, None]
    # The same command tries it again: with the cause removed it ends well.
    code, told, _ = run("ablate", declare(CAREFUL), "--out", tmp_path / "out", "--json")
    assert code == 0
    assert [cell["error"] for cell in json.loads(told)["cells"]] == [None, None]


@pytest.mark.slow
def test_a_dry_run_tells_cells_and_cost_and_runs_nothing(run, declare, tmp_path):
    file = declare()
    code, told, _ = run("ablate", file, "--out", tmp_path / "out", "--dry-run", "--json")
    assert code == 0
    assert not (tmp_path / "out").exists()
    estimate = json.loads(told)
    assert estimate["cells"] == 6
    short, long = estimate["kinds"]
    # 36 images of 16 a step: 3 steps an epoch, 7 for three epochs.
    assert (short["cells"], short["steps"], long["steps"]) == (3, 3, 7)
    assert long["flops"] / long["steps"] == pytest.approx(short["flops"] / short["steps"])
    assert estimate["seconds"] == pytest.approx(3 * (short["seconds"] + long["seconds"]))


@pytest.mark.slow
def test_a_dry_run_of_a_network_that_is_still_to_be_trained(run, declare, tmp_path):
    file = declare("cell=_after")
    code, told, said = run("ablate", file, "--out", tmp_path / "out", "--dry-run", "--json")
    assert code == 0, said
    kinds = {kind["arm"]: kind for kind in json.loads(told)["kinds"]}
    # The head alone is differentiated.
    assert kinds["long"]["flops"] / 7 < kinds["short"]["flops"] / 3 / 2


def test_a_dry_run_is_a_table_for_people(run, declare, tmp_path):
    code, told, _ = run("ablate", declare(CAREFUL), "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "GFLOP a step" in told
    assert "2 cells" in told


def test_a_search_of_which_every_choice_fails_is_a_failure(run, declare, tmp_path):
    # 7 images a step do not divide over the devices: the run fails before it is compiled.
    cell = "lambda *a: dataclasses.replace(cell(*a), batch_size=7)"
    search = "choices={'short': ({'lr': 0.05}, {'lr': 0.1})}, tuning_seeds=(100,)"
    file = declare(f"cell={cell}, arms=('short',), {search}, claims=()")
    code, told, said = run("ablate", file, "--out", tmp_path / "out", "--json")
    assert code == 1, said
    results = json.loads(told)
    assert [one["chosen"] for one in results["choices"]] == [None]
    assert {cell["role"] for cell in results["cells"]} == {"tuning"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing.py"], "no such experiment file"),
        (["FILE", "--jobs", "0"], "--jobs 0"),
        (["FILE", "--out", "FILE"], "is a file"),
    ],
)
def test_bad_input_is_one_line(run, declare, args, words):
    file = declare()
    code, told, said = run("ablate", *(str(file) if arg == "FILE" else arg for arg in args))
    assert (code, told) == (2, "")
    (line,) = said.strip().splitlines()
    assert words in line
