"""A probe at every stage."""

import numpy as np

from jxfer.probe import stages
from jxfer.probe.stages import ProbeConfig, Split


def test_an_empty_test_split_is_refused_before_the_fit(monkeypatch, one_line):
    monkeypatch.setattr(stages.neighbours, "fit", None)
    rows = np.eye(2, dtype=np.float32)
    full, empty = (Split({"stem": rows[:n]}, np.arange(n)) for n in (2, 0))
    with one_line("the test split has no images"):
        stages.probe(ProbeConfig("knn"), full, full, empty, ("ants", "bees"))
