import dataclasses

import jax
import numpy as np
import pytest

import jxfer
from jxfer import trees
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig, create_model
from jxfer.zoo.report import Report
from jxfer.zoo.reuse import fresh_parts, reused_leaves

OTHER = ("ant", "bee", "fly", "wasp", "moth")
RESNET = ("stem", "stage1", "stage2", "stage3", "stage4")


@pytest.fixture
def entry(tmp_path, card, variables):
    store.save(tmp_path / "small", card, variables)
    return str(tmp_path / "small")


def shapes(arch, **options):
    model = registry.create(arch, None, **options)
    return model, trees.flatten(model.shapes())


def units(paths):
    """The first two keys of each path below its collection: `stage1/block0`, `stem/conv`."""
    return {"/".join(path.split("/")[1:3]) for path in paths}


def reused(card, source, target, stages):
    """Units that go from one architecture into another."""
    model, leaves = shapes(target)
    card = dataclasses.replace(card, arch=source)
    return units(reused_leaves(model, card, shapes(source)[1], leaves, stages))


def test_resnet18_into_resnet34(card):
    assert reused(card, "resnet18", "resnet34", RESNET) == {
        "stem/conv",
        "stem/norm",
        *(f"stage{stage}/block{block}" for stage in range(1, 5) for block in range(2)),
    }


def test_resnet34_into_resnet18_fits_whole(card):
    model, target = shapes("resnet18")
    card = dataclasses.replace(card, arch="resnet34")
    assert reused_leaves(model, card, shapes("resnet34")[1], target, RESNET) == sorted(target)


def test_resnet18_into_resnet50_shares_the_stem_alone(one_line, card):
    assert reused(card, "resnet18", "resnet50", ["stem"]) == {"stem/conv", "stem/norm"}
    with one_line(
        "--model.reuse stage1",
        "params/stage1/block0/conv1/kernel has shape (3, 3, 64, 64), expected (1, 1, 64, 64)",
    ):
        reused(card, "resnet18", "resnet50", ["stem", "stage1"])


def test_a_convolution_goes_with_its_norm(one_line, card):
    assert reused(card, "vgg11_bn", "vgg16_bn", ["stage1", "stage3", "fc6"]) == {
        "stage1/conv1",
        "stage1/norm1",
        *(f"stage3/{kind}{i}" for kind in ("conv", "norm") for i in (1, 2)),
        "fc6/kernel",
        "fc6/bias",
    }
    with one_line("--model.reuse stage1", "only the entry has", "stage1/norm1"):
        reused(card, "vgg11_bn", "vgg11", ["stage1"])
    with one_line("--model.reuse stage1", "only the model has", "stage1/norm1"):
        reused(card, "vgg11", "vgg11_bn", ["stage1"])


def test_a_block_goes_with_its_shortcut(card):
    assert reused(card, "resnet20_b", "resnet20", ["stage2"]) == {"stage2/block1", "stage2/block2"}


def test_values_and_accounts(card, variables):
    target = registry.create("resnet32", len(OTHER))
    stages = ("stem", "stage1", "stage2")
    got, report = jxfer.transplant(target, card, variables, class_names=OTHER, seed=5, reuse=stages)
    blocks = {f"{stage}/block{i}" for stage in stages[1:] for i in range(3)}
    assert units(report.loaded) == {"stem/conv", "stem/norm", *blocks}
    assert {*report.loaded, *report.reinitialised} == set(trees.flatten(target.shapes()))
    assert {*report.loaded, *report.dropped} == set(trees.flatten(variables))
    got, fresh = trees.flatten(got), trees.flatten(target.init(5))
    source = trees.flatten(variables)
    for path in report.loaded:
        np.testing.assert_array_equal(got[path], source[path])
    for path in report.reinitialised:
        np.testing.assert_array_equal(got[path], fresh[path])
    assert fresh_parts(report) == (
        "stage1/block3",
        "stage1/block4",
        "stage2/block3",
        "stage2/block4",
        "stage3",
    )


def test_the_same_units_give_the_same_activations(card, variables):
    """The stem and all blocks of stage 1: what comes out of them is the entry's, bit for bit."""
    source = registry.create("resnet20", None, through="stage1")
    target = registry.create("resnet20", None, through="stage2")
    got, _ = jxfer.transplant(target, card, variables, reuse=("stem", "stage1"))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    want = jax.jit(source.apply)(variables, images)[0]["stage1"]
    np.testing.assert_array_equal(jax.jit(target.apply)(got, images)[0]["stage1"], want)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["stage4"], ("the resnet32 has no such stage", "stem, stage1, stage2, stage3")),
        (["head"], ("--model.reuse head", "no such stage")),
        (["stage3"], ("small (resnet20) holds no such stage",)),
    ],
)
def test_a_stage_that_one_side_lacks(one_line, card, variables, stages, words):
    part, _ = trees.split(variables, lambda path: "/stage3/" not in path)
    with one_line(*words):
        jxfer.transplant(registry.create("resnet32", 5), card, part, reuse=stages)


def test_a_head_is_never_taken_over(one_line, card, variables):
    with one_line("--model.reuse", "--model.head new"):
        jxfer.transplant(
            registry.create("resnet32", 3),
            card,
            variables,
            head="keep",
            class_names=card.class_names,
            reuse=("stem",),
        )


def test_folded_norms_stand_beside_no_others(one_line, card, variables):
    folded = dataclasses.replace(card, batchnorm="folded")
    with one_line("small", "folded into its convolutions", "every stage that is built"):
        jxfer.transplant(registry.create("resnet32", 5), folded, variables, reuse=("stem",))
    # Option B's blocks 1 and 2 are those of option A, so a model of the stem and stage 1 is filled.
    whole = registry.create("resnet20_b", 5, through="stage1")
    _, report = jxfer.transplant(whole, folded, variables, reuse=("stem", "stage1"))
    assert fresh_parts(report) == ()


def test_new_parts_are_stages_or_what_is_below_them():
    loaded = ("params/stage1/conv1/kernel", "batch_stats/stage1/norm1/mean")
    fresh = (
        "batch_stats/stage1/norm2/mean",
        "params/head/linear/bias",
        "params/stage1/conv2/kernel",
        "params/stage1/norm2/scale",
        "params/stage2/conv1/kernel",
    )
    assert fresh_parts(Report(loaded, fresh, ())) == ("stage1/conv2", "stage1/norm2", "stage2")


def test_from_a_config(entry):
    config = ModelConfig(weights=entry, arch="resnet32", reuse=("stem", "stage1"), through="stage2")
    pretrained = create_model(config, OTHER, seed=1)
    assert pretrained.model.architecture.name == "resnet32"
    assert pretrained.model.stages == ("stem", "stage1", "stage2")
    assert pretrained.preprocessing == pretrained.card.preprocessing
    assert pretrained.fresh == ("stage1/block3", "stage1/block4", "stage2")


def test_part_of_the_same_architecture(entry):
    pretrained = create_model(ModelConfig(weights=entry, reuse=("stem",)), OTHER)
    assert pretrained.model.architecture.name == "resnet20"
    assert pretrained.fresh == ("stage1", "stage2", "stage3")


@pytest.mark.parametrize(
    ("options", "scratch", "words"),
    [
        ({"arch": "resnet32"}, False, ("--model.arch resnet32", "resnet20", "--model.reuse")),
        ({"arch": "resnet32", "reuse": ("stem",)}, True, ("--model.reuse", "scratch")),
        ({"weights": None, "arch": "resnet32", "reuse": ("stem",)}, False, ("--model.weights",)),
        ({"reuse": ("stem",), "head": "keep"}, False, ("--model.reuse", "--model.head new")),
    ],
)
def test_contradictions(one_line, entry, options, scratch, words):
    with one_line(*words):
        create_model(ModelConfig(**{"weights": entry, **options}), OTHER, scratch=scratch)
