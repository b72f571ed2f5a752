"""Dropout in the train step: which layers drop, and that a mask does not depend on the devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.train import parallel, step
from jxfer.train.state import Plan
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from tests.train.steps import BATCH, draw_batch


def make_plan(strategy=StrategyConfig("linear_probe"), arch="resnet20", through="stage1", **head):
    model = registry.create(arch, 3, through=through, head=HeadConfig(**head))
    (phase,) = phases(strategy, model.stages)
    return Plan(
        model=model,
        preprocessing=CIFAR,
        phase=phase,
        optimizer=OptimizerConfig(lr=0.5),
        loss=LossConfig(),
        total_steps=10,
        steps_per_epoch=5.0,
        folded=False,
    )


MLP = {"kind": "mlp", "hidden": (32, 16), "dropout": 0.5}


@functools.cache
def compiled(plan, devices):
    train_step = step.make_train_step(plan)
    if devices == 1:
        return jax.jit(jax.vmap(train_step, axis_name=parallel.AXIS))
    return parallel.compile_step(train_step)


def train(plan, devices, seed=0, first=0, steps=3):
    """The head after a few steps on the same batch, over all devices or on one."""
    state = plan.initial_state(plan.model.init(0), seed)
    state = dataclasses.replace(state, step=jnp.int32(first))
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None].repeat(devices, 0), state)
    batch = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in draw_batch().items()}
    for _ in range(steps):
        state, _ = compiled(plan, devices)(state, batch)
    return {path: np.asarray(leaf)[0] for path, leaf in trees.flatten(state.params["head"]).items()}


def differ(a, b, atol=0.0):
    return {path for path in a if not np.allclose(a[path], b[path], rtol=0, atol=atol)}


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one():
    plan = make_plan(**MLP)
    one, eight = train(plan, 1), train(plan, 8)
    assert differ(one, eight, atol=1e-5) == set()
    assert differ(one, train(make_plan(**{**MLP, "dropout": 0.0}), 1), atol=1e-3)


@pytest.mark.slow
def test_the_seed_and_nothing_else_decides_the_masks():
    plan = make_plan(**MLP)
    assert differ(train(plan, 8), train(plan, 8)) == set()
    assert differ(train(plan, 8), train(plan, 8, seed=1), atol=1e-3)
    assert differ(train(plan, 8), train(plan, 8, seed=2**32)) == set()


def test_each_step_has_masks_of_its_own():
    """A step from the same parameters differs by its number, and only where something drops."""
    plain, dropping = make_plan(**{**MLP, "dropout": 0.0}), make_plan(**MLP)
    for plan, same in ((plain, True), (dropping, False)):
        one, two = (train(plan, 1, first=first, steps=1) for first in (0, 1))
        # The rate of step 1 is a little lower, so all is compared with where it started.
        start = trees.flatten(plan.model.init(0)["params"]["head"])
        moves = [np.concatenate([(h[p] - start[p]).ravel() for p in start]) for h in (one, two)]
        cosine = moves[0] @ moves[1] / np.linalg.norm(moves[0]) / np.linalg.norm(moves[1])
        assert (cosine > 0.9999) == same


def test_runs_that_differ_by_their_seed_share_one_program():
    plan = make_plan(**MLP)
    states = [plan.initial_state(plan.model.init(0), seed) for seed in (0, 1)]
    assert states[0].seed != states[1].seed
    shapes = [jax.tree.map(jnp.shape, state) for state in states]
    assert shapes[0] == shapes[1]
    assert plan == make_plan(**MLP)
    assert hash(plan) == hash(make_plan(**MLP))


@pytest.mark.parametrize(("dropout", "draws"), [(0.0, False), (0.5, True)])
def test_a_step_without_dropout_draws_no_random_bits(dropout, draws):
    plan = make_plan(dropout=dropout)
    assert plan.drops == draws
    state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None], plan.initial_state(plan.model.init(0))
    )
    batch = {k: v[None] for k, v in draw_batch().items()}
    traced = jax.make_jaxpr(jax.vmap(step.make_train_step(plan), axis_name=parallel.AXIS))
    assert ("random_" in str(traced(state, batch))) == draws


@pytest.mark.parametrize(
    ("strategy", "dropping"),
    [
        (StrategyConfig("scratch"), {"fc6/dropout", "fc7/dropout", "head/dropout"}),
        (StrategyConfig("full"), {"fc6/dropout", "fc7/dropout", "head/dropout"}),
        (StrategyConfig("partial", "fc6"), {"fc7/dropout", "head/dropout"}),
        (StrategyConfig("partial", "stage5"), {"fc6/dropout", "fc7/dropout", "head/dropout"}),
        (StrategyConfig("linear_probe"), {"head/dropout"}),
    ],
    ids=lambda value: f"{value.name}-{value.freeze_through}" if hasattr(value, "name") else "",
)
def test_a_frozen_group_runs_as_in_evaluation(strategy, dropping):
    for arch in ("alexnet", "vgg16"):
        plan = make_plan(strategy, arch, None, dropout=0.2)
        assert plan.train_layers == dropping
        assert plan.drops


def test_the_index_of_an_example_does_not_depend_on_how_it_is_dealt_out(monkeypatch):
    """Host h of n holds every n-th example from the h-th on, and deals them out in order."""
    for hosts, devices in ((1, 1), (1, 8), (2, 4), (4, 2)):
        monkeypatch.setattr(jax, "process_count", lambda hosts=hosts: hosts)
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        each = BATCH // (hosts * devices)
        indices = jax.vmap(
            lambda _, each=each: parallel.example_indices(each), axis_name=parallel.AXIS
        )(jnp.zeros(hosts * devices))
        wanted = np.concatenate([np.arange(BATCH)[host::hosts] for host in range(hosts)])
        np.testing.assert_array_equal(np.asarray(indices).reshape(-1), wanted)
