"""The rules, on measurements made by hand."""

import dataclasses

import numpy as np
import pytest

from jxfer.advise import advice, rules
from jxfer.advise.measure import Depth, Measurements, Size
from jxfer.advise.mirror import Mirrors, mirrors
from jxfer.data.sources import DataConfig
from jxfer.zoo.pretrained import ModelConfig, create_model

FEW, MANY = Size(10, 100, 10, 10), Size(10, 800, 80, 80)
MEASURED = Measurements(
    weights="net",
    images=100,
    depths=(Depth("stem", 16, 0.4, 0.3, -0.2), Depth("stage1", 16, 0.6, 0.5, -0.1)),
    h_score=1.0,
    leep=-1.0,
    nce=-1.0,
    frechet=0.2,
    proxy_a_distance=1.2,
    norm_shift={"stem": 0.5, "stage1": 0.05},
    known_classes={},
    folded=False,
    missing={},
    mirrors=Mirrors(0.1, 100),
    image_seconds=0.01,
    seconds=1.0,
)


def measured(**changes):
    return dataclasses.replace(MEASURED, **changes)


def test_size_is_a_number_of_images():
    assert rules.verdict(FEW, MEASURED).small
    assert not rules.verdict(MANY, MEASURED).small


def test_likeness_is_the_distance_then_the_shift_then_the_names_then_unknown():
    found = rules.verdict(FEW, MEASURED)
    assert found.similar
    assert found.decided_by == "proxy A-distance 1.20, limit 1.55"
    assert rules.verdict(FEW, measured(proxy_a_distance=1.9)).similar is False
    near = measured(proxy_a_distance=None)
    assert rules.verdict(FEW, near).similar
    far = dataclasses.replace(near, norm_shift={"stem": 0.0, "stage1": 0.3})
    found = rules.verdict(FEW, far)
    assert found.similar is False
    assert found.decided_by == "norm shift 0.30 in stage1, limit 0.08"
    folded = dataclasses.replace(near, norm_shift={}, folded=True)
    assert rules.verdict(FEW, folded).similar is None
    assert str(rules.verdict(FEW, folded)) == "small, of unknown likeness"
    some, every = ({"ImageNet": tuple("abcdefghij")[:n]} for n in (9, 10))
    assert rules.verdict(FEW, dataclasses.replace(folded, known_classes=some)).similar is None
    assert rules.verdict(FEW, dataclasses.replace(folded, known_classes=every)).similar


def test_where_nothing_tells_likeness_no_table_is_asked():
    unknown = rules.verdict(MANY, measured(proxy_a_distance=None, norm_shift={}))
    assert [rules.says(table, unknown) for table in rules.TABLES] == [None, None]
    assert rules.reach(unknown, folded=False) == "freeze_most"


def test_more_is_frozen_where_the_source_is_alike_and_labels_are_few():
    far = measured(proxy_a_distance=1.9)
    reaches = [
        rules.reach(rules.verdict(size, one), folded=False)
        for one in (MEASURED, far)
        for size in (FEW, MANY)
    ]
    assert reaches == ["linear_probe", "freeze_most", "freeze_part", "freeze_part"]
    # Small for a table, and not few of a class.
    two = Size(2, 160, 80, 80)
    found = rules.verdict(two, MEASURED)
    assert (found.small, found.few) == (True, False)
    assert rules.says("CS231n", found) == "linear_probe"
    assert rules.reach(found, folded=False) == "freeze_most"


def test_with_folded_norms_little_trains():
    alike, far = (rules.verdict(MANY, measured(proxy_a_distance=d)) for d in (1.2, 1.9))
    assert rules.reach(alike, folded=True) == "linear_probe"
    assert rules.reach(far, folded=True) == "freeze_most"


def test_the_tables_are_those_that_were_published():
    cells = [(small, similar) for small in (True, False) for similar in (True, False)]
    assert [rules.CS231N[cell] for cell in cells] == ["linear_probe", "early_probe", "full", "full"]
    assert [rules.FREEZE_TABLE[cell] for cell in cells] == [
        "linear_probe",
        "freeze_part",
        "freeze_most",
        "full",
    ]


def test_the_weights_with_the_best_probe_win_and_the_first_of_equals():
    better = measured(weights="better", depths=(Depth("stem", 16, 0.7, 0.1, -0.9),))
    again = measured(weights="again")
    assert rules.choose([MEASURED, better]).weights == "better"
    assert rules.choose([MEASURED, again]).weights == "net"


def test_of_equal_stages_the_deeper_is_the_best():
    depths = (Depth("stem", 16, 0.6, 0.3, -0.2), Depth("stage1", 16, 0.6, 0.5, -0.1))
    assert measured(depths=depths).best.stage == "stage1"


@pytest.fixture(scope="module")
def pretrained():
    return create_model(ModelConfig(weights="resnet20-cifar100"), tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("reach", "strategy", "freeze_through"),
    [
        ("linear_probe", "linear_probe", None),
        ("freeze_most", "partial", "stage2"),
        ("freeze_part", "partial", "stage1"),
        ("full", "full", None),
    ],
)
def test_a_reach_becomes_a_config(pretrained, reach, strategy, freeze_through):
    model = ModelConfig(weights="resnet20-cifar100")
    found = advice.make_config(reach, DataConfig("digits"), model, pretrained, FEW, seed=3)
    assert found.model == model
    assert found.strategy.name == strategy
    assert found.strategy.freeze_through == freeze_through
    assert found.seed == 3
    assert found.batch_size % 8 == 0  # of as many devices
    assert found.epochs == {"linear_probe": 48}.get(strategy, 12)


@pytest.mark.parametrize("reach", ["freeze_part", "freeze_most", "linear_probe"])
def test_of_a_network_of_one_stage_all_is_frozen(reach):
    model = ModelConfig(arch="alexnet", through="stage1")
    one = create_model(model, ("a", "b"), scratch=True)
    found = advice.make_config(reach, DataConfig("digits"), model, one, FEW)
    assert found.strategy.name == "linear_probe"


def test_measurements_take_a_bounded_share_of_the_work():
    images = advice.images_to_measure
    assert images(1e9, 1e6, candidates=1) == 1000
    resnet50 = 8.2e9
    assert images(1e12, resnet50, candidates=1) * 2.4 * resnet50 <= 1.2e12
    full = 3 * 5000 * resnet50
    assert 0 < images(full, resnet50, candidates=2) * 2 * 2.4 * resnet50 <= 0.05 * full


def test_more_images_take_fewer_epochs_and_more_steps(pretrained):
    model = ModelConfig(weights="resnet20-cifar100")
    few, many = (
        advice.make_config("full", DataConfig("digits"), model, pretrained, size)
        for size in (FEW, MANY)
    )
    assert (few.epochs, many.epochs) == (12, 4)
    assert few.epochs * FEW.examples < many.epochs * MANY.examples


def test_folded_norms_take_smaller_steps(pretrained):
    folded = dataclasses.replace(
        pretrained, card=dataclasses.replace(pretrained.card, batchnorm="folded")
    )
    model = ModelConfig(weights="resnet20-cifar100")
    rates = [
        advice.make_config("full", DataConfig("digits"), model, one, FEW).optimizer.lr
        for one in (pretrained, folded)
    ]
    assert rates[1] < rates[0]


def test_mirror_images_are_harmless_where_nothing_tells_them_apart():
    assert Mirrors(0.34, 100).harmless
    assert not Mirrors(0.36, 100).harmless
    assert not Mirrors(0.0, 99).harmless  # too few to say


def test_the_mirror_distance_is_that_of_the_images_side():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8))
    assert mirrors(rows, rng.normal(size=(200, 8)), 0).distance < 0.35
    assert mirrors(rows, rng.normal(size=(200, 8)) + 3, 0).distance > 1.9
    # An image and its own mirror image are never compared: equal rows are no evidence.
    assert mirrors(rows, rows, 0).distance < 0.35


def test_advice_says_what_would_change_it_and_what_to_beware_of():
    verdict = rules.verdict(FEW, MEASURED)
    few, alike = advice._would_change(FEW, verdict, folded=False)
    assert few.startswith("at least 30 images of a class (there are 10): freeze_most")
    assert alike.startswith("images different from the source (proxy A-distance 1.20, limit 1.55)")
    assert alike.endswith(": freeze_part")
    uneven = Size(10, 100, 2, 40)
    known = measured(known_classes={"ImageNet": ("ants", "bees")}, folded=True)
    overlap, balance, folded = advice._warnings(uneven, known)
    assert "ImageNet" in overlap
    assert "2 of the 10 classes" in overlap
    assert "2 to 40 images" in balance
    assert "folded" in folded
    assert advice._warnings(FEW, MEASURED) == ()
