"""Stages that are computed again in the backward pass: the same step in less memory."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.train.plans import load
from jxfer.transfer.strategy import StrategyConfig
from tests.conftest import CLASSES
from tests.train.steps import make_plan, traced, train


def with_remat(plan):
    return dataclasses.replace(plan, model=plan.model.rematerialised())


def repeated(plan):
    """Stages of the backward pass that begin with a second forward pass."""
    found = [e for e in traced(plan) if e.primitive.name in ("checkpoint", "remat2", "remat")]
    return sum(bool(e.params["differentiated"]) for e in found)


def test_a_config_asks_for_it(small_config):
    config = small_config()
    assert not load(config, CLASSES).model.module.remat
    assert load(dataclasses.replace(config, remat=True), CLASSES).model.module.remat


@pytest.mark.parametrize("arch", ["resnet18", "alexnet"])
def test_paths_shapes_and_layers_are_the_same(arch):
    model = registry.create(arch, 3)
    other = model.rematerialised()
    assert trees.flatten(other.shapes()) == trees.flatten(model.shapes())
    assert other.norm_paths() == model.norm_paths()
    assert other.dropout_paths() == model.dropout_paths()


def test_what_trains_is_repeated_and_a_frozen_prefix_is_not():
    plan = make_plan("full")
    assert repeated(plan) == 0
    assert repeated(with_remat(plan)) == 2  # the stem and stage 1
    assert repeated(with_remat(make_plan(StrategyConfig("partial", "stem")))) == 1
    assert repeated(with_remat(make_plan("linear_probe"))) == 0


def test_the_backward_pass_keeps_the_input_of_each_stage_and_no_other_map():
    model = registry.create("resnet20", 3, through="stage1")
    shapes, layers = model.shapes(), frozenset(model.norm_paths())
    batch_stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes["batch_stats"])
    images = jnp.ones((5, 32, 32, 3))

    def kept(model):
        def total(params):
            variables = {"params": params, "batch_stats": batch_stats}
            return jnp.sum(model.apply(variables, images, layers)[0]["logits"])

        pull_back = jax.eval_shape(lambda params: jax.vjp(total, params)[1], shapes["params"])
        maps = [leaf.shape for leaf in jax.tree.leaves(pull_back) if leaf.ndim == 4]
        return sorted(shape for shape in maps if shape[0] == len(images))

    assert kept(model.rematerialised()) == [(5, 32, 32, 3), (5, 32, 32, 16)]
    assert len(kept(model)) > 2 * len(layers)  # what each norm and each convolution takes


CASES = {
    "full": {},
    "partial, norms adapt": {"strategy": StrategyConfig("partial", "stem", frozen_norms="adapt")},
    "parts, dropout": {"accumulate": 2, "head": HeadConfig("mlp", (8,), dropout=0.5)},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_steps_are_the_same(case):
    plan = make_plan(**case)
    (_, _), (wanted, wanted_sums) = train(plan, steps=2)
    (_, _), (found, sums) = train(with_remat(plan), steps=2)
    np.testing.assert_allclose(sums["loss"], wanted_sums["loss"], rtol=1e-5)
    for kind in ("params", "batch_stats"):
        flat = trees.flatten(getattr(wanted, kind))
        for path, leaf in trees.flatten(getattr(found, kind)).items():
            atol = 1e-5 * np.abs(flat[path]).max()
            np.testing.assert_allclose(leaf, flat[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.slow
def test_dropout_inside_a_stage_drops_the_same_again():
    """AlexNet's fc6 and fc7: were their masks drawn anew, the gradients would differ in full."""
    model = registry.create("alexnet", 3, through="fc6")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 63, 63, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = model.init(0)

    @jax.jit
    def loss(kernel, keys, model=model):
        params = variables["params"] | {"stage5": kernel}
        layers = frozenset(model.dropout_paths())
        outputs, _ = model.apply({"params": params}, images, layers, keys)
        return jnp.sum(outputs["logits"] ** 2)

    def again(kernel, keys):
        return loss.__wrapped__(kernel, keys, model.rematerialised())

    kernel = variables["params"]["stage5"]
    wanted, other = (jax.jit(jax.grad(loss))(kernel, k) for k in (keys, keys[::-1]))
    found = jax.jit(jax.grad(again))(kernel, keys)
    for path, leaf in trees.flatten(wanted).items():
        size = np.abs(leaf).max()
        np.testing.assert_allclose(trees.flatten(found)[path], leaf, rtol=0, atol=1e-5 * size)
        assert np.abs(trees.flatten(other)[path] - leaf).max() > 0.1 * size


def test_on_cpu_it_is_said_to_save_nothing(small_config, caplog):
    with caplog.at_level(logging.WARNING, "jxfer"):
        load(small_config(remat=True), CLASSES)
    (record,) = caplog.records
    assert "--remat saves no memory on CPU" in record.message
