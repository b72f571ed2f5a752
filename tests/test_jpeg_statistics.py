"""The errors of AdaBN without training: which images serve which, and what is counted."""

import importlib
import pathlib

import numpy as np
import pytest

from jxfer.statistics import wilson_interval

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("jpeg_statistics")


def test_each_half_holds_half_of_every_class_and_serves_the_other(experiment):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 4))
    (one, other), (again, back) = experiment.halves(labels)
    assert (one.tolist(), other.tolist()) == (back.tolist(), again.tolist())
    assert sorted([*one, *other]) == list(range(12))
    assert np.bincount(labels[one]).tolist() == [2, 2, 2]


def test_the_table_counts_errors_and_what_changed(experiment):
    published = np.array([True, True, True, False, False] * 4)
    adapted = np.array([True, True, False, True, True] * 4)
    row = experiment.table({"net": (published, adapted)}).splitlines()[2]
    low, high = wilson_interval(8, 20)
    wanted = f"| net | 40.00 ({100 * low:.2f} to {100 * high:.2f}) | 20.00 "
    assert row.startswith(wanted)
    # 8 against 4: twice the chance of 4 or fewer heads of 12 is 2 * 794 / 4096.
    assert row.endswith("| 8 | 4 | 0.39 |")
