import dataclasses

import pytest

from jxfer.advise.overlap import is_imagenet, known_classes
from jxfer.data.transforms import Preprocessing
from jxfer.zoo import imagenet
from jxfer.zoo.card import Ancestor, Card

PIXELS = Preprocessing(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CARD = Card("net", "resnet20", ("tiger_cat", "bee", "glass"), PIXELS, dataset="animals")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("bee", True),
        ("Bees", True),
        ("cat", True),  # a tiger cat is one
        ("tiger cats", True),
        ("tiger", False),  # and a tiger is none
        ("be", False),
        ("glass", True),
        ("lemons", False),
        ("3", False),
    ],
)
def test_a_name_matches_the_end_of_a_name(name, known):
    assert known_classes(CARD, [name, "other"]) == ({"animals": (name,)} if known else {})


def test_weights_that_say_imagenet_have_its_classes_with_or_without_a_head():
    headless = dataclasses.replace(CARD, class_names=(), dataset="ImageNet-1k")
    headed = dataclasses.replace(CARD, class_names=imagenet.class_names(), dataset="")
    for card in (headless, headed):
        assert known_classes(card, ["ants", "bees"]) == {"ImageNet": ("ants", "bees")}
        assert known_classes(card, ["0", "1"]) == {}


def test_so_does_what_descends_from_them():
    parent = Ancestor("base", "resnet20", "ImageNet", "unknown", None, "", None, "0")
    assert known_classes(dataclasses.replace(CARD, parents=(parent,)), ["ants", "bee"]) == {
        "animals": ("bee",),
        "ImageNet": ("ants", "bee"),
    }


@pytest.mark.parametrize(
    ("dataset", "yes"),
    [
        ("ImageNet", True),
        ("ImageNet-1k", True),
        ("tfds:imagenet2012", True),
        ("ILSVRC-2012", True),
        ("tiny-imagenet-200", False),
        ("imagenette", False),
        ("", False),
    ],
)
def test_imagenet_is_known_by_its_names(dataset, yes):
    assert is_imagenet(dataset) == yes


def test_names_of_imagenet_follow_the_ids():
    names = dict(zip(imagenet.class_names(), imagenet.words(), strict=True))
    assert names["n02219486"] == "ant"
    assert names["n02206856"] == "bee"
    assert names["n01440764"] == "tench"
    assert names["n15075141"] == "toilet tissue"
