"""The errors of AdaBN without training, and their control: which images serve which."""

import csv
import importlib
import pathlib
import zipfile

import cv2
import numpy as np
import pytest

from jxfer.data.mapped import MappedSource
from jxfer.data.sources import DataConfig, Subset, open_for_evaluation
from jxfer.statistics import wilson_interval
from jxfer.train import parallel
from jxfer.train.evaluate import Evaluator
from jxfer.zoo import store, weights

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("jpeg_statistics")


@pytest.fixture
def hits(experiment):
    """Of one network: what each comparison has right, 20 images."""
    published = np.array([True, True, True, False, False] * 4)
    adapted = np.array([True, True, False, True, True] * 4)
    clean = np.array([True, True, True, True, False] * 4)
    others = np.array([True, True, True, True, False] * 3 + [True, False, False, True, False])
    return {
        ("JPEG", "published"): published,
        ("JPEG", "JPEG"): adapted,
        ("JPEG", "clean"): published,
        ("clean", "published"): clean,
        ("clean", "clean"): others,
    }


def test_each_half_holds_half_of_every_class_and_serves_the_other(experiment):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 4))
    (one, other), (again, back) = experiment.halves(labels)
    assert (one.tolist(), other.tolist()) == (back.tolist(), again.tolist())
    assert sorted([*one, *other]) == list(range(12))
    assert np.bincount(labels[one]).tolist() == [2, 2, 2]


def test_the_table_counts_errors_and_what_changed(experiment, hits):
    claim, control, same, rest = experiment.table({"net": hits}).splitlines()[2:]
    low, high = wilson_interval(8, 20)
    wanted = f"8 | 40.00 ({100 * low:.2f} to {100 * high:.2f}) | 4 | 20.00 "
    assert claim.startswith(f"| JPEG | published, JPEG | net | {wanted}")
    # 8 against 4: twice the chance of 4 or fewer heads of 12 is 2 * 794 / 4096.
    assert claim.endswith("| 8 | 4 | 0.39 |")
    assert control.startswith("| clean | published, clean | net | 4 | 20.00 (")
    assert control.endswith("| 0 | 2 | 0.5 |")  # two of two heads, either way
    assert same.endswith("| 0 | 0 | 1 |")
    assert rest.startswith("| JPEG | clean, JPEG | net | 8 ")


def test_the_verdict_counts_networks_by_what_is_shown_after_correction(experiment, hits):
    def network(mended, broken):
        first, second = np.ones(100, bool), np.ones(100, bool)
        first[:mended] = second[mended : mended + broken] = False
        return hits | {("JPEG", "published"): first, ("JPEG", "JPEG"): second}

    # p: 2 * 2**-20, then 2 * 2**-6 = 0.031, enough alone and not as the third of four.
    counts = {"a": network(20, 0), "b": network(0, 20), "c": network(6, 0), "d": network(0, 6)}
    line = experiment.verdict(counts)
    assert line.endswith("reproduced in 1, contradicted in 1, underpowered in 2 of 4 networks.")
    alone = experiment.verdict({"c": counts["c"]})
    assert alone.endswith("reproduced in 1 of 1 networks.")


def test_clean_images_stand_in_the_order_of_their_jpegs(experiment, monkeypatch, tmp_path):
    """Their names sort the other way round."""
    rows = []
    with (
        zipfile.ZipFile(tmp_path / "cifar10_test.zip", "w") as pngs,
        zipfile.ZipFile(tmp_path / "cifar10_jpeg_test.zip", "w") as jpegs,
    ):
        for label in "ab":
            for i in range(3):
                png = f"cifar10/test/{label}/{9 - i}.png"
                jpeg = f"cifar10_jpeg/test/{label}/{i}.jpg"
                pngs.writestr(png, f"{label}{i}")
                jpegs.writestr(jpeg, f"{label}{i}")
                rows.append({"jpeg": jpeg, "png": png})
    with (tmp_path / "cifar10_jpeg_pairs.csv").open("w") as file:
        table = csv.DictWriter(file, ["jpeg", "png"])
        table.writeheader()
        table.writerows(rows)
    monkeypatch.chdir(tmp_path)
    sources = experiment.pair(tmp_path)
    found = {name: [source[i].image for i in range(6)] for name, source in sources.items()}
    assert found["clean"] == found["JPEG"] == [b"a0", b"a1", b"a2", b"b0", b"b1", b"b2"]
    assert sources["clean"].labels.tolist() == sources["JPEG"].labels.tolist() == [0] * 3 + [1] * 3


@pytest.mark.slow
def test_each_image_meets_the_statistics_that_are_named(experiment, monkeypatch):
    """The evaluator's own count as published; equal domains have equal statistics, others not."""
    monkeypatch.setattr(experiment, "BATCH", 40)
    found = weights.load("resnet20-glyphs")
    glyphs = open_for_evaluation(DataConfig("glyphs"))
    clean = Subset(glyphs, np.arange(0, len(glyphs), len(glyphs) // 80)[:80])
    dark = MappedSource(clean, lambda image, name: cv2.GaussianBlur(image, (5, 5), 0) // 2)
    same = experiment.correct(found, {"clean": clean, "JPEG": clean})
    other = experiment.correct(found, {"clean": clean, "JPEG": dark})
    published = Evaluator(store.build(found.card), found.card.preprocessing, 40)
    for name, source in (("clean", clean), ("JPEG", dark)):
        wanted = published.evaluate(parallel.replicate(found.variables), source)
        assert other[name, "published"].sum() == wanted.correct
    assert same["JPEG", "clean"].tolist() == same["JPEG", "JPEG"].tolist()
    assert same["clean", "clean"].tolist() == other["clean", "clean"].tolist()
    assert other["JPEG", "JPEG"].tolist() != other["JPEG", "published"].tolist()
    assert other["JPEG", "clean"].tolist() != other["JPEG", "JPEG"].tolist()
