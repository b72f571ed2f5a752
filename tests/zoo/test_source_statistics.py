"""Statistics in a card: what goes in comes out, and what does not belong together is refused."""

import dataclasses
import json

import numpy as np
import pytest

from jxfer import sealed
from jxfer.zoo import store
from jxfer.zoo.card import Ancestor, Card
from jxfer.zoo.source_statistics import SourceStatistics, encode

RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=3).astype(np.float32)
COVARIANCE = RNG.normal(size=(3, 3)).astype(np.float32)
SAMPLE = RNG.normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def statistics(card):
    return SourceStatistics(
        output="pooled",
        data="digits",
        split="train",
        split_seed=0,
        val_fraction=0.1,
        examples=9,
        preprocessing=card.preprocessing,
        tensors_sha256="ab" * 32,
        features=3,
        mean=encode(MEAN),
        covariance=encode(COVARIANCE),
        sample=encode(SAMPLE),
    )


@pytest.fixture
def measured(card, statistics):
    """The card with statistics of its own tensors."""
    return dataclasses.replace(card, tensors_sha256="ab" * 32, statistics=statistics)


def test_every_number_survives_the_card(measured):
    read = Card.from_json(measured.to_json())
    assert read == measured
    np.testing.assert_array_equal(read.statistics.mean_array(), MEAN)
    np.testing.assert_array_equal(read.statistics.covariance_array(), COVARIANCE)
    np.testing.assert_array_equal(read.statistics.sample_array(), SAMPLE)


def test_an_array_is_one_line_of_little_endian_float32(measured):
    assert encode(np.array([1.0, -2.0], ">f8")) == "AACAPwAAAMA="
    assert sum(encode(SAMPLE) in line for line in measured.to_json().splitlines()) == 1


def test_64_features_take_less_than_100_kb_of_card(measured):
    arrays = {"mean": RNG.normal(size=64), "covariance": RNG.normal(size=(64, 64))}
    arrays["sample"] = RNG.normal(size=(200, 64))
    large = dataclasses.replace(
        measured.statistics,
        features=64,
        examples=200,
        **{name: encode(array) for name, array in arrays.items()},
    )
    assert len(dataclasses.replace(measured, statistics=large).to_json()) < 96_000


def test_a_card_of_an_earlier_version_has_none(card):
    fields = sealed.bare(json.loads(card.to_json()))
    del fields["statistics"]
    assert Card.from_json(json.dumps(fields)) == card
    assert card.statistics is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": encode(MEAN[:2])}, ("2 in mean", "3 features")),
        ({"covariance": encode(MEAN)}, ("3 in covariance",)),
        ({"sample": encode(np.zeros(7))}, ("7 in sample",)),
        ({"sample": ""}, ("0 in sample",)),
        ({"examples": 4}, ("15 in sample", "4 examples")),
        ({"features": 0}, ("0 features",)),
        ({"mean": encode([np.nan, 0, 0])}, ("statistics.mean", "not finite")),
        ({"mean": "not base64"}, ("statistics.mean is not base64",)),
        ({"mean": "AAAA"}, ("statistics.mean is not base64 of float32",)),
        ({"mean": [1.0]}, ("statistics.mean must be text",)),
        ({"colour": 1}, ("unknown field statistics.colour",)),
        ({"tensors_sha256": "cd" * 32}, ("of other tensors", "jxfer zoo statistics")),
    ],
)
def test_refuses(one_line, measured, change, words):
    fields = json.loads(measured.to_json())
    fields["statistics"] |= change
    with one_line("a/card.json", *words):
        Card.from_json(json.dumps(fields), "a/card.json")


def test_statistics_of_other_tensors_or_pixels_are_refused(one_line, measured):
    with one_line("other tensors"):
        dataclasses.replace(measured, tensors_sha256="cd" * 32)
    with one_line("another preprocessing"):
        pixels = dataclasses.replace(measured.preprocessing, size=64)
        dataclasses.replace(measured, preprocessing=pixels)


def test_other_tensors_cannot_be_saved_with_them(tmp_path, one_line, measured, variables):
    with one_line("other tensors"):
        store.save(tmp_path / "entry", measured, variables)
    assert not (tmp_path / "entry").exists()


def test_a_descendant_inherits_none(measured):
    assert "statistics" not in {field.name for field in dataclasses.fields(Ancestor)}
    assert "statistics" not in dataclasses.asdict(measured.as_ancestor())


def test_what_commands_list_has_no_arrays(measured):
    listed = measured.listed()
    assert not {"mean", "covariance", "sample"} & listed["statistics"].keys()
    assert listed["statistics"]["examples"] == 9
    listed["statistics"] = dataclasses.asdict(measured.statistics)
    assert listed == dataclasses.asdict(measured)
    assert str(measured.statistics) == (
        "pooled, 3 features, of 9 examples (digits, train), and 5 of them"
    )
