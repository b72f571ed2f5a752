"""The script that compares arms, against SciPy on a sweep that might have been."""

import numpy as np
import scipy.stats

from jxfer.ablate.claims import ACCURACY
from jxfer.report import results
from scripts import compare_arms
from tests.report import sweeps


def test_differences_are_paired_by_the_seed(tmp_path, capsys):
    sweeps.write(tmp_path / "out", sweeps.results())
    compare_arms.main(tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    found = results.read(tmp_path / "out")
    # Seed 3 of lp_ft failed: the other four are compared.
    full, lp_ft = (found.summary("digits, many", arm, ACCURACY).values for arm in ("full", "lp_ft"))
    paired = [full[seed] - lp_ft[seed] for seed in (0, 1, 2, 4)]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(paired), scipy.stats.sem(paired))
    (line,) = (one for one in lines if one.split("  ")[0] == "digits, many" and "lp_ft" in one
               and "full" in one)  # fmt: skip
    assert line.split("lp_ft")[1].split() == [
        *("4", f"{np.mean(paired):.2f}", f"{low:.2f}", "to", f"{high:.2f}")
    ]
    assert not any("cifar10, few" in one and "lp_ft" in one for one in lines)  # no such arm there


def test_settings_of_an_axis_are_compared_in_each_arm(tmp_path, capsys):
    sweeps.write(tmp_path / "out", sweeps.results(axis="images of a class"))
    compare_arms.main(tmp_path / "out")
    found = results.read(tmp_path / "out")
    few, many = (found.summary(f"digits, {n}", "full", ACCURACY).values for n in ("few", "many"))
    paired = [few[seed] - many[seed] for seed in sorted(few)]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(paired), scipy.stats.sem(paired))
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("full")
               and "digits, few" in one and "digits, many" in one)  # fmt: skip
    assert line.split("digits, many")[1].split() == [
        *("5", f"{np.mean(paired):.2f}", f"{low:.2f}", "to", f"{high:.2f}")
    ]
