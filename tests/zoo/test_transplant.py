import dataclasses

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.models import registry
from jxfer.zoo.transplant import transplant

OTHER = ("ant", "bee", "fly", "wasp", "moth")


def paths(tree, *parts):
    return {path for path in trees.flatten(tree) if path.split("/")[1] in parts}


def accounted_for(source, model, report):
    target = set(trees.flatten(model.shapes()))
    loaded, fresh, dropped = map(set, (report.loaded, report.reinitialised, report.dropped))
    assert loaded | fresh == target
    assert not loaded & fresh
    assert loaded | dropped == set(trees.flatten(source))
    assert not loaded & dropped  # a head may be dropped and drawn anew under the same path
    for names in (report.loaded, report.reinitialised, report.dropped):
        assert list(names) == sorted(set(names))


def same(got, want, names):
    got, want = trees.flatten(got), trees.flatten(want)
    for name in names:
        assert type(got[name]) is np.ndarray
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_new_head(card, variables):
    target = registry.create("resnet20", len(OTHER))
    got, report = transplant(target, card, variables, head="new", class_names=OTHER, seed=3)
    accounted_for(variables, target, report)
    assert set(report.reinitialised) == paths(target.shapes(), "head")
    assert set(report.dropped) == paths(variables, "head")
    same(got, variables, report.loaded)
    same(got, target.init(3), report.reinitialised)
    shapes = jax.tree.map(lambda leaf: leaf.shape, target.shapes())
    assert jax.tree.map(lambda leaf: leaf.shape, got) == shapes


def test_the_seed_draws_the_head(card, variables, model):
    def kernel(seed):
        got, _ = transplant(
            model, card, variables, head="new", class_names=card.class_names, seed=seed
        )
        return got["params"]["head"]["linear"]["kernel"]

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert not np.array_equal(kernel(1), kernel(2))
    assert not np.array_equal(kernel(1), variables["params"]["head"]["linear"]["kernel"])


def test_kept_head(card, variables, model):
    got, report = transplant(
        model, card, variables, head="keep", class_names=card.class_names, seed=0
    )
    accounted_for(variables, model, report)
    assert report.reinitialised == report.dropped == ()
    same(got, variables, report.loaded)


def test_truncation(card, variables):
    target = registry.create("resnet20", len(OTHER), through="stage2")
    got, report = transplant(target, card, variables, head="new", class_names=OTHER, seed=0)
    assert set(report.dropped) == paths(variables, "stage3", "head")
    assert set(report.loaded) == paths(variables, "stem", "stage1", "stage2")
    assert got["params"]["head"]["linear"]["kernel"].shape == (32, len(OTHER))
    same(got, variables, report.loaded)


@pytest.mark.parametrize("head", ["new", "keep"])
def test_a_model_without_head(card, variables, head):
    target = registry.create("resnet20", None)
    got, report = transplant(target, card, variables, head=head, class_names=(), seed=0)
    accounted_for(variables, target, report)
    assert set(report.dropped) == paths(variables, "head")
    assert "head" not in got["params"]


def test_truncated_entry(one_line, card, variables):
    part = dataclasses.replace(card, through="stage2", class_names=())
    kept = paths(variables, "stem", "stage1", "stage2")
    source, _ = trees.split(variables, kept.__contains__)
    target = registry.create("resnet20", len(OTHER), through="stage2")
    _, report = transplant(target, part, source, head="new", class_names=OTHER, seed=0)
    assert set(report.loaded) == kept
    assert report.dropped == ()
    whole = registry.create("resnet20", len(OTHER))
    with one_line("small holds stages through stage2; add --model.through stage2"):
        transplant(whole, part, source, head="new", class_names=OTHER, seed=0)
    with one_line("small has no head to keep"):
        transplant(target, part, source, head="keep", class_names=OTHER, seed=0)


def test_another_architecture(one_line, card, variables):
    target = registry.create("resnet32", 3)
    with one_line("small is a resnet20, not a resnet32", "--model.reuse"):
        transplant(target, card, variables, head="new", class_names=OTHER[:3], seed=0)


def test_a_stage_that_the_architecture_lacks(one_line, card, variables, model):
    odd = dataclasses.replace(card, through="stage9")
    with one_line("stage9"):
        transplant(model, odd, variables, head="new", class_names=OTHER[:3], seed=0)


def test_keep_needs_the_same_classes(one_line, card, variables, model):
    target = registry.create("resnet20", len(OTHER))
    with one_line("small has 3 classes and the data has 5"):
        transplant(target, card, variables, head="keep", class_names=OTHER, seed=0)
    with one_line("class 1 is 'dog'", "'owl' in the data"):
        transplant(model, card, variables, head="keep", class_names=("cat", "owl", "dog"), seed=0)


def test_problems_come_together(one_line, card, variables, model):
    flat = trees.flatten(variables)
    del flat["params/stem/conv/kernel"]
    flat["params/stem/extra"] = np.zeros(3, np.float32)
    flat["params/stage1/block0/norm1/scale"] = np.zeros(5, np.float32)
    with one_line(
        "small into resnet20: 3 problems:",
        "unexpected params/stem/extra",
        "missing params/stem/conv/kernel",
        "params/stage1/block0/norm1/scale has shape (5,), expected (16,)",
    ):
        transplant(model, card, trees.unflatten(flat), head="new", class_names=OTHER[:3], seed=0)


def test_a_head_that_does_not_fit_its_card(one_line, card, variables, model):
    source, _ = trees.split(variables, lambda path: "/head/" not in path)
    with one_line("2 problems", "missing params/head/linear/bias"):
        transplant(model, card, source, head="keep", class_names=card.class_names, seed=0)
