"""The report of a sweep beside the results that it was made from."""

import csv
import json
import os
import urllib.parse

import numpy as np
import pytest
import scipy.stats

from jxfer.commands.main import main
from jxfer.report import results, sweep, sweep_charts, sweep_tables
from jxfer.report.page import Number
from tests.report import sweeps

ACCURACY = "test accuracy"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a sweep, with its report."""
    folder = tmp_path_factory.mktemp("sweeps") / "my sweep #1"
    sweeps.write(folder, sweeps.results())
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def found(out):
    return results.read(out)


def values(setting, arm, measure=ACCURACY):
    return [
        cell["measures"][measure]
        for cell in sweeps.results()["cells"]
        if (cell["setting"], cell["arm"], cell["status"]) == (setting, arm, "finished")
    ]


def cell(table, row, column):
    (found,) = (line for line in table.rows if line[0] == row)
    return found[table.columns.index(column)]


def test_the_command_writes_all_files(out):
    written = {str(path.relative_to(out / "report")) for path in (out / "report").rglob("*.*")}
    stems = {"test-accuracy", "claims", "hyper-parameters", "drift", "intervals", "unfinished"}
    assert written == {
        *("report.md", "index.html"),
        *(f"tables/{stem}.tex" for stem in stems),
        *(f"tables/{name}.csv" for name in ("means", "cells", "claims")),
        *(f"figures/{m}-chart-1.{kind}" for m in ("test-accuracy", "drift")
          for kind in ("svg", "png", "pdf")),
    }  # fmt: skip


def test_two_writes_give_the_same_bytes(out, capsys):
    before = {path: path.read_bytes() for path in (out / "report").rglob("*.*")}
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"see {out}/report/index.html\n"
    assert {path: path.read_bytes() for path in (out / "report").rglob("*.*")} == before


def test_the_main_table_holds_means_and_t_intervals(found):
    table = sweep_tables.measure(found, ACCURACY)
    assert table.columns == ["setting", *sweeps.ARMS]
    numbers = values("digits, few", "full")
    half = scipy.stats.t.ppf(0.975, 4) * np.std(numbers, ddof=1) / np.sqrt(5)
    shown = cell(table, "digits, few", "full")
    assert shown.value == pytest.approx(np.mean(numbers))
    mean, width = map(float, shown.text.split(" ± "))
    assert mean == pytest.approx(np.mean(numbers), abs=0.05)
    assert width == pytest.approx(half, abs=0.05)
    assert cell(table, "digits, many", "lp_ft").text.endswith("(n = 4)")
    assert cell(table, "cifar10, few", "lp_ft") == "–"


def test_a_single_run_stands_with_wilsons_interval(found):
    shown = cell(sweep_tables.measure(found, ACCURACY), "cifar10, many", "linear_probe")
    (accuracy,) = values("cifar10, many", "linear_probe")
    wilson = scipy.stats.binomtest(round(5 * accuracy), 500).proportion_ci(method="wilson")
    low, high = 100 * wilson.low, 100 * wilson.high
    mean, interval = shown.text.removesuffix(" (n = 1)").split(" ", 1)
    assert float(mean) == pytest.approx(accuracy, abs=0.05)
    assert [float(end) for end in interval.strip("[]").split(", ")] == pytest.approx(
        [low, high], abs=0.05
    )
    assert not shown.strong


def given(*arms):
    """Results of one setting, with the accuracies of each arm by seed."""
    base = sweeps.results()
    cells = [
        {**base["cells"][0], "arm": arm, "seed": seed, "key": f"{a}{seed}"}
        | {"measures": {ACCURACY: value}}
        for a, (arm, accuracies) in enumerate(zip(sweeps.ARMS, arms, strict=False))
        for seed, value in enumerate(accuracies)
    ]
    one = {"settings": base["settings"][:1], "measures": [ACCURACY], "claims": []}
    return {**base, **one, "cells": cells}


@pytest.mark.parametrize(
    ("arms", "strong"),
    [
        # A difference of 1 at every seed is sure, however much the seeds differ.
        (([50, 60, 70], [51, 61, 71]), {"full"}),
        # The mean is higher by one seed alone.
        (([50, 60, 70], [50, 60, 72]), {"linear_probe", "full"}),
        # One run cannot be compared.
        (([50, 60, 70], [99]), set()),
        (([50, 60, 70], [51, 61, 71], [99]), {"full"}),
        (([50, 60, 70],), set()),
    ],
)
def test_bold_are_the_best_and_those_that_are_not_shown_to_be_worse(arms, strong, tmp_path):
    sweeps.write(tmp_path / "out", given(*arms))
    found = results.read(tmp_path / "out")
    assert found.not_shown_worse("digits, few", ACCURACY) == strong
    table = sweep_tables.measure(found, ACCURACY)
    assert table.columns == ["arm", "digits, few"]  # the longer of the two goes down
    assert {arm for arm, one in table.rows if isinstance(one, Number) and one.strong} == strong


def test_another_measure_has_no_best(found):
    table = sweep_tables.measure(found, "drift")
    numbers = [one for row in table.rows for one in row if isinstance(one, Number)]
    assert len(numbers) == 11
    assert not any(number.strong for number in numbers)


def test_the_captions_tell_the_search(found):
    caption = sweep_tables.measure(found, ACCURACY).caption
    tried = (
        "Each arm tried 3 choices of hyper-parameters in each setting at 2 tuning seeds (100, 101)"
    )
    assert tried in caption
    assert "Chosen: linear_probe: lr 0.1*; full: lr 0.03; lp_ft: lr 0.03." in caption
    assert "An asterisk marks" in caption
    assert "Cut to 5 seeds." in caption
    assert sweep_tables.search(found).rows[0] == [
        *("digits, few", "linear_probe", "lr 0.1*"),
        "lr 0.01: 81.00%; lr 0.03: 83.00%; lr 0.1: 90.00%",
    ]


def test_many_choices_are_counted(tmp_path):
    base = sweeps.results()
    for i, one in enumerate(base["choices"]):
        one["chosen"] = {"lr": sweeps.RATES[(i + i // 3) % 3]}
    sweeps.write(tmp_path / "out", base)
    caption = sweep_tables.measure(results.read(tmp_path / "out"), ACCURACY).caption
    at_ends = sum(one["chosen"]["lr"] != sweeps.RATES[1] for one in base["choices"])
    assert "; lp_ft: " not in caption
    assert f"under Hyper-parameters; {at_ends} of {len(base['choices'])} are at an end." in caption


def test_arms_of_which_only_slopes_are_claimed_are_not_compared(tmp_path):
    base = sweeps.results()
    for trends in (0, 1, 2):
        claims = [{**claim, "trend": i < trends} for i, claim in enumerate(base["claims"][:2])]
        sweeps.write(tmp_path / str(trends), {**base, "claims": claims})
        table = sweep_tables.measure(results.read(tmp_path / str(trends)), ACCURACY)
        numbers = [one for row in table.rows for one in row if isinstance(one, Number)]
        assert any(number.strong for number in numbers) == (trends < 2)
        assert ("nothing is bold" in table.caption) == (trends == 2)


def test_the_claims_are_those_that_were_judged(found):
    table = sweep_tables.claims(found)
    assert len(table.rows) == len(sweeps.results()["claims"]) == 7
    for row, verdict in zip(table.rows, sweeps.results()["claims"], strict=True):
        assert row[:2] == [verdict["claim"], verdict["setting"]]
        assert row[3] == verdict["verdict"]
    assert "lp_ft > full in digits, many: 1" in table.caption


def test_what_did_not_finish_is_listed(out, found):
    rows = sweep_tables.unfinished(found).rows
    assert [row[0] for row in rows] == ["failed", "missing"]
    assert rows[0][-1] == "the loss is NaN at step 7"
    text = (out / "report" / "report.md").read_text()
    assert "the loss is NaN at step 7" in text


def test_runs_that_diverged_are_listed(tmp_path):
    told = sweeps.results()
    first = next(cell for cell in told["cells"] if cell["status"] == "finished")
    first["diverged"] = True
    sweeps.write(tmp_path, told)
    assert main(["report", str(tmp_path)]) == 0
    (row,) = sweep_tables.diverged(results.read(tmp_path)).rows
    assert row[:4] == [first["role"], first["setting"], first["arm"], str(first["seed"])]
    assert "## Diverged runs" in (tmp_path / "report" / "report.md").read_text()


def test_csv_holds_the_raw_numbers(out):
    folder = out / "report" / "tables"
    with (folder / "means.csv").open(newline="") as file:
        means = list(csv.DictReader(file))
    assert len(means) == 22
    (row,) = (m for m in means if (m["setting"], m["arm"], m["measure"]) == (
        "cifar10, many", "full", "drift"))  # fmt: skip
    found = values("cifar10, many", "full", "drift")
    assert float(row["mean"]) == np.mean(found)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(found), scipy.stats.sem(found))
    assert [float(row["t_low"]), float(row["t_high"])] == pytest.approx([low, high])
    assert row["wilson_low"] == ""
    with (folder / "cells.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for line, one in zip(cells, sweeps.results()["cells"], strict=True):
        assert json.loads(line["choice"]) == one["choice"]
        if one["status"] == "finished":
            assert float(line["drift"]) == one["measures"]["drift"]


def test_settings_on_an_axis_are_curves(tmp_path):
    sweeps.write(tmp_path / "out", sweeps.results(axis="images per class"))
    first, second = sweep_charts.charts(results.read(tmp_path / "out"), ACCURACY)
    assert [first.heading, second.heading] == [
        "Test accuracy, %, by images per class: digits",
        "Test accuracy, %, by images per class: cifar10",
    ]
    assert first.log_x
    assert first.x_label == "images per class"
    assert [line.name for line in first.lines] == list(sweeps.ARMS)
    full = first.lines[1]
    assert list(full.x) == [5, 500]
    assert full.y[0] == np.mean(values("digits, few", "full"))
    assert full.low[0] < full.y[0] < full.high[0]
    assert list(second.lines[2].x) == [500]  # there is no lp_ft at 5


@pytest.mark.slow
def test_the_page_leads_to_every_cell(out, browser):
    tab = browser.new_page()
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((out / "report" / "index.html").as_uri())
    links = tab.locator("a")
    # The config of each finished cell, the log of each that began, and the files.
    assert links.count() == 49 + 50 + 15
    for link in links.all():
        address = urllib.parse.urlsplit(link.evaluate("link => link.href"))
        assert address.scheme == "file"
        assert (out / "report" / urllib.parse.unquote(link.get_attribute("href"))).is_file()
    cells = tab.get_by_role("table", name="Every cell")
    cells.get_by_role("button", name="seconds").click()
    column = cells.locator("tbody td:nth-child(8)").all_inner_texts()
    assert column[:2] == ["12", "12"]
    assert column[-2:] == ["–", "–"]
    assert cells.locator("tbody td:last-child").first.inner_text().startswith("jxfer train --run ")
    tab.locator("section", has=tab.get_by_role("heading", name="Test accuracy, %, by")).locator(
        "svg[data-stops]").hover()  # fmt: skip
    assert "full: " in tab.get_by_role("status").first.inner_text()
    assert said == []
    tab.close()


@pytest.mark.slow
def test_a_report_elsewhere_still_leads_to_the_cells(out, tmp_path):
    written = sweep.write(out, tmp_path / "elsewhere" / "report")
    text = (written / "index.html").read_text()
    first = urllib.parse.quote(os.path.relpath(out / "cells" / "fffffffff000", written))
    assert f'href="{first}/config.json"' in text


@pytest.mark.slow
def test_results_without_their_cells_are_reported(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(sweeps.results()))
    assert "config.json" not in (sweep.write(tmp_path) / "index.html").read_text()


def test_a_sweep_that_has_not_begun_is_reported(tmp_path):
    found = sweeps.results()
    missing = ("key", "role", "setting", "arm", "seed", "choice")
    cells = [
        {name: one[name] for name in missing} | {"status": "missing", "error": None}
        for one in found["cells"]
    ]
    begun = {**found, "cells": cells, "claims": [], "choices": [], "commits": [], "versions": {}}
    sweeps.write(tmp_path / "out", begun)
    text = (sweep.write(tmp_path / "out") / "report.md").read_text()
    assert "0 of 51 finished" in text


def test_a_run_at_two_places_of_the_table_is_counted_once(tmp_path):
    base = given([50, 60], [50, 60])
    base["cells"] = [{**one, "seconds": 3600.0} for one in base["cells"]]
    base["cells"][2]["key"] = base["cells"][0]["key"]
    (tmp_path / "results.json").write_text(json.dumps(base))
    last = sweep._provenance(results.read(tmp_path))[-1]
    assert last == "Cells: 3 of 3 finished, 3 hours in all"


@pytest.mark.parametrize(
    ("text", "words"), [(None, "jxfer ablate"), ('{"name": ', "not valid JSON"), ("[]", "object")]
)
def test_results_that_are_not_results_are_one_line(text, words, tmp_path, one_line):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with one_line("results.json", words):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("arms"), ("arms", "missing")),
        (lambda found: found["cells"][0].update(arm="half"), ("half in digits, few",)),
        (lambda found: found["cells"][0]["measures"].update(drift="low"), ("drift", "'low'")),
        (lambda found: found["cells"][0].update(status="done"), ("status", "finished")),
    ],
)
def test_results_that_are_damaged_are_one_line(change, words, tmp_path, one_line):
    found = sweeps.results()
    change(found)
    (tmp_path / "results.json").write_text(json.dumps(found))
    with one_line("results.json", *words):
        results.read(tmp_path)


def test_a_damaged_config_is_one_line(tmp_path, one_line):
    sweeps.write(tmp_path / "out", given([50, 60], [50, 60]))
    (tmp_path / "out" / "cells" / "00" / "config.json").write_text("{")
    with one_line("00/config.json"):
        sweep.write(tmp_path / "out")


def test_a_folder_with_nothing_to_report_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no results.json" in line
