import dataclasses
import json

import pytest

from jxfer.zoo.card import Ancestor, Card, Measurement

PARENT = Ancestor(
    "first", "resnet20", "digits", "MIT", None, "https://example.org/net", "ab" * 32, "cd"
)


def full(card):
    return dataclasses.replace(
        card,
        through="stage2",
        reported_accuracy=0.9173,
        parents=(PARENT, PARENT),
        measured=(Measurement("folder:ünïcode", "test", 0.75, 3, 4),),
        config={"optimizer": {"learning_rate": 0.1}, "steps": [1, 2]},
        seed=3,
    )


def test_round_trip(card):
    text = full(card).to_json()
    assert Card.from_json(text) == full(card)
    assert Card.from_json(text).to_json() == text
    assert "ünïcode" in text
    assert text.endswith("}\n")


def test_every_field_is_documented():
    import inspect

    source = inspect.getsource(Card)
    for field in dataclasses.fields(Card):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


def fields(value, prefix=()):
    """Keys and indices that lead to each field of a card's JSON, nested ones too."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict):
            yield (*prefix, key)
        if isinstance(child, dict | list) and key != "config":  # a config is free in form
            yield from fields(child, (*prefix, key))


def test_every_missing_field_is_named(one_line, card):
    """But for those that earlier versions did not have."""
    found = fields(json.loads(full(card).to_json()))
    paths = [path for path in found if path not in {("statistics",), ("checksum",)}]
    assert {("name",), ("head", "kind"), ("parents", 1, "source"), ("measured", 0, "n")} < {*paths}
    for *parents, field in paths:
        value = json.loads(full(card).to_json())
        node = value
        for key in parents:
            node = node[key]
        del node[field]
        named = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in parents)
        with one_line(f"a/card.json: the field {f'{named}.{field}'.lstrip('.')} is missing"):
            Card.from_json(json.dumps(value), "a/card.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, ("unknown field colour",)),
        ({"class_names": "cat"}, ("class_names must be a list",)),
        ({"class_names": [1]}, ("class_names[0] must be text",)),
        ({"preprocessing": None}, ("preprocessing must be an object",)),
        ({"batchnorm": "frozen"}, ("batchnorm must be one of standard, folded",)),
        ({"reported_accuracy": 91.7}, ("reported_accuracy", "91.7", "0.9173")),
        ({"seed": 1.5}, ("seed must be an integer",)),
    ],
)
def test_refuses(one_line, card, change, words):
    value = json.loads(card.to_json()) | change
    with one_line("card.json", *words):
        Card.from_json(json.dumps(value))


def test_a_bad_preprocessing_names_the_file(one_line, card):
    value = json.loads(card.to_json())
    value["preprocessing"]["size"] = 0
    with one_line("a/card.json", "size"):
        Card.from_json(json.dumps(value), "a/card.json")


def test_a_flipped_figure_is_told(card, one_line):
    text = card.to_json()
    flipped = text.replace("0.485", "0.487")
    assert flipped != text
    with one_line("a/card.json is damaged", "checksum"):
        Card.from_json(flipped, "a/card.json")


def test_a_card_of_an_earlier_version_has_no_checksum(card):
    fields = json.loads(card.to_json())
    del fields["checksum"]
    assert Card.from_json(json.dumps(fields)) == card


def test_not_json(one_line):
    with one_line("a/card.json: not valid JSON"):
        Card.from_json('{"name": ', "a/card.json")


@pytest.mark.parametrize(
    ("bad", "advice"),
    [((0.5, 3, 4), "give 0.75"), ((1.25, 5, 4), "the counts"), ((0.0, 0, 0), "the counts")],
)
def test_a_measurement_must_add_up(one_line, bad, advice):
    with one_line("measured", advice):
        Measurement("d", "test", *bad)


def test_text_that_is_no_card_is_one_line(card, one_line):
    text = card.to_json()
    for bad, words in (
        ("[" * 100_000, ("not valid JSON", "import the entry again")),
        (
            text.replace('"notes": ""', '"notes": "\\ud800"'),
            ("no Unicode", "import the entry again"),
        ),
        (text.replace('"seed": null', '"seed": ' + "1" * 5_000), ("not valid JSON",)),
        (text.replace("0.485", "NaN"), ("mean and std must be finite",)),
        (text.replace('"dog"', '"cat"'), ("names 'cat' twice", "a name of its own")),
    ):
        assert bad != text
        with one_line("here", *words):
            Card.from_json(bad, "here")


def test_the_classes_of_other_data_are_told_apart(card, one_line):
    card.check_classes(("cat", "dog", "owl"))
    with one_line("in another order", "rename the class folders", "cat, dog, owl"):
        card.check_classes(("dog", "cat", "owl"))
    with one_line(
        "knows 3 classes and the data has 7",
        "in the model: owl; only in the data: a, b",
        "use data of the model's classes",
    ):
        card.check_classes(("cat", "dog", *"abcde"))
    with one_line("a, b, c, d, e and 2 more"):
        card.check_classes(("cat", "dog", "owl", *"abcdefg"))
