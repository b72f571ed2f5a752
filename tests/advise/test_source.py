"""Streamed moments beside NumPy's on all rows at once."""

import numpy as np
import pytest

from jxfer.advise import source
from jxfer.advise.source import Moments, source_statistics
from jxfer.data import sources
from jxfer.data.sources import DataConfig
from jxfer.models import registry
from jxfer.probe import features
from jxfer.zoo.card import Card


def test_moments_of_blocks_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(1e4, 1, (100, 5)).astype(np.float32)
    moments = Moments.none(5)
    for block in np.split(rows, [1, 2, 40]):
        moments.add(block)
    exact = rows.astype(np.float64)
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(), np.cov(exact.T), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", None, through="stage1")


@pytest.fixture
def card(model):
    return Card(
        name="small",
        arch="resnet20",
        class_names=(),
        preprocessing=model.architecture.preprocessing,
        through="stage1",
        tensors_sha256="ab" * 32,
    )


@pytest.fixture
def data(images):
    return DataConfig(f"folder:{images}")


def test_statistics_are_those_of_the_extracted_features(monkeypatch, model, card, data):
    """36 images in steps of 16, the last one short; 20 of them are kept."""
    monkeypatch.setattr(source, "SAMPLE", 20)
    train, variables = sources.open_for_evaluation(data, "train"), model.init(0)
    told = []
    found = source_statistics(
        card, variables, train, data, "train", batch_size=16, advance=told.append
    )
    rows = features.extract(model, card.preprocessing, variables, train, ["pooled"], batch_size=16)[
        "pooled"
    ]
    assert (found.examples, found.features, found.output) == (36, 16, "pooled")
    assert (found.data, found.split, found.split_seed) == (data.source, "train", 0)
    assert (found.tensors_sha256, found.preprocessing) == ("ab" * 32, card.preprocessing)
    np.testing.assert_allclose(found.mean_array(), rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.covariance_array(), np.cov(rows.T), rtol=1e-4, atol=1e-7)
    places = [int(np.flatnonzero((rows == row).all(1))[0]) for row in found.sample_array()]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert told == [16, 32, 36]
    assert found == source_statistics(card, variables, train, data, "train", batch_size=16)


def test_a_source_smaller_than_the_sample_is_kept_whole(model, card, data):
    test = sources.open_for_evaluation(data, "test")
    found = source_statistics(card, model.init(0), test, data, "test", batch_size=16)
    assert found.sample_array().shape == (12, 16)


def test_one_image_is_not_enough(one_line, model, card, data):
    one = sources.Subset(sources.open_for_evaluation(data, "test"), [0])
    with one_line("at least two images"):
        source_statistics(card, model.init(0), one, data, "test")
