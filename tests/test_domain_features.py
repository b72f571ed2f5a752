"""Which arms of the table of domain adaptation can be drawn."""

import importlib
import json
import pathlib

import pytest

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
SETTING = "MNIST -> USPS"


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """The drawing of arms, of whose runs there is the table alone."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    cells = [
        {
            "role": "table",
            "setting": SETTING,
            "arm": arm,
            "status": "finished",
            "key": arm,
            "measures": {"test accuracy": 90.0, "proxy A-distance": distance},
        }
        for arm, distance in (("dann", 1.0), ("adabn", None), ("oracle", None))
    ]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    experiment = importlib.import_module("domain_features")
    return lambda *arms: experiment.draw(tmp_path, SETTING, arms)


@pytest.mark.parametrize("arm", ["adabn", "oracle"])
def test_an_arm_without_features_of_two_domains_is_one_line(draw, one_line, arm):
    with one_line(f"--arms {arm}: it has no features of two domains"):
        draw("dann", arm)  # before any run is opened: that of dann is not there


def test_an_arm_without_a_run_is_one_line(draw, one_line):
    with one_line('no finished run of "mcc"'):
        draw("dann", "mcc")
