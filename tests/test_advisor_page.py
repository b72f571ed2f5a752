"""The advisor's page of results: what its figures give, counted as it says."""

import importlib
import pathlib
import shutil

import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
RESULTS = EXPERIMENTS / "results"


@pytest.fixture(scope="module")
def regret():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("advisor_regret")


def test_the_page_is_what_the_results_give(regret, tmp_path, capsys):
    for name in ("advisor-grid.json", "advisor-regret.json"):
        shutil.copy(RESULTS / name, tmp_path)
    regret.write_page(tmp_path)
    page = (tmp_path / "advisor-regret.md").read_text()
    assert page == (RESULTS / "advisor-regret.md").read_text()


def test_regret_is_scored_on_the_seeds_that_did_not_choose(regret):
    cell = regret.CELLS[0]
    # linear_probe is the best on seeds 0 and 1 alone, full on 2 and 3 alone, the rest are equal.
    table = np.full((len(regret.STRATEGY), 4), 50.0)
    names = list(regret.STRATEGY.values())
    table[names.index("linear_probe")] = (60, 60, 40, 40)
    table[names.index("full")] = (40, 40, 60, 60)
    seen = {
        "reach": "linear_probe",
        "small": True,
        "similar": True,
        "log_me": [0.0, 0.0, 0.0, 1.0],
        "probe": [0.5],
    }
    found = regret.regrets([[cell]], {cell.name: table}, {cell.name: [seen] * 4})
    # Chosen on (0, 1): probe, 40 on the others; on (2, 3): full; on mixed pairs all tie, at 50:
    # the first in order is the probe, as the policy itself.
    assert found["advisor"] == pytest.approx(((0 + 0) + (40 - 60) * 2 + 0) / 12)
    assert found["always fine-tune all"] == pytest.approx(
        ((40 - 60) * 2 + (40 - 40) * 2 + 4 * ((60 - 40) + (40 - 60))) / 12
    )
    whole = regret.regrets([[cell]], {cell.name: table}, {cell.name: [seen] * 4}, halves=False)
    assert whole["advisor"] == 0
