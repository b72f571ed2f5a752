"""Moving averages of what trains: the rule, what holds them, and what is made of them."""

import dataclasses

import numpy as np
import pytest

from jxfer import trees
from jxfer.train import checkpoint, loop
from jxfer.train.checkpoint import Checkpoints
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.train.conftest import make_course
from tests.train.steps import make_plan, train


def test_the_averages_follow_the_values_by_their_decay(assert_same_bits):
    plan = make_plan("scratch", ema_decay=0.9)
    variables = plan.model.init(0)
    averages = {path: leaf.astype(np.float64) for path, leaf in trees.flatten(variables).items()}
    plain = train(make_plan("scratch"), steps=3)
    for (state, _), (without, _) in zip(train(plan, steps=3), plain, strict=True):
        assert_same_bits(state.params, without.params)  # the averages change nothing else
        assert without.ema == {}
        values = trees.flatten({"params": state.params, "batch_stats": state.batch_stats})
        averages = {path: 0.9 * average + 0.1 * values[path] for path, average in averages.items()}
        found = trees.flatten(state.ema)
        assert found.keys() == averages.keys()
        for path, average in averages.items():
            np.testing.assert_allclose(found[path], average, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["linear_probe", "bn_only"])
def test_frozen_leaves_are_not_held_twice(name):
    plan = make_plan(name, ema_decay=0.9)
    state = plan.initial_state(plan.model.init(0))
    held = trees.flatten(state.ema)
    assert {path for path in held if path.startswith("params/")} == {
        f"params/{path}" for path in plan.trainable
    }
    assert {path.rpartition("/")[0] for path in held if path.startswith("batch_stats/")} == {
        f"batch_stats/{layer}" for layer in plan.train_layers
    }
    marked = dataclasses.replace(
        state, ema=trees.unflatten({path: leaf + 1 for path, leaf in held.items()})
    )
    whole = trees.flatten({"params": state.params, "batch_stats": state.batch_stats})
    for path, leaf in trees.flatten(marked.variables).items():
        np.testing.assert_array_equal(leaf, held[path] + 1 if path in held else whole[path])


def test_without_averages_the_checkpoint_says_nothing_of_them():
    plan = make_plan("linear_probe")
    assert "ema" not in checkpoint._to_tree(plan.initial_state(plan.model.init(0)))


@pytest.fixture(scope="module")
def config(small_config, make_entry):
    """lp_ft: five steps of the head, four of everything."""
    return small_config(
        model=ModelConfig(weights=make_entry("standard"), through="stage1"),
        strategy=StrategyConfig("lp_ft"),
        checkpoint_every=1,
        ema_decay=0.8,
    )


@pytest.fixture(scope="module")
def course(config):
    return make_course(config)


def test_at_a_switch_averages_go_on_and_new_ones_start_at_their_values(course):
    first = course.initial
    moved = trees.unflatten({path: leaf + 1 for path, leaf in trees.flatten(first.ema).items()})
    entered = course.enter(dataclasses.replace(first, ema=moved, step=np.int32(5)), 1)
    found, before = trees.flatten(entered.ema), trees.flatten(moved)
    assert before.keys() == {"params/head/linear/bias", "params/head/linear/kernel"}
    values = trees.flatten({"params": first.params, "batch_stats": first.batch_stats})
    assert found.keys() == values.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, before.get(path, values[path]), err_msg=path)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("ema") / "run"
    loop.run_config(config, run, quiet=True)
    return run


def test_the_saved_model_is_the_average_of_the_best_step(undisturbed, course, assert_same_bits):
    with Checkpoints(undisturbed / "checkpoints") as checkpoints:
        _, progress = checkpoints.restore_latest(course.like)
        state, _ = checkpoints._restore(progress["best"]["step"], course.like)
    _, variables = store.load(undisturbed / "model")
    assert_same_bits(variables, state.variables)
    assert any(
        not np.array_equal(leaf, trees.flatten(state.params)[path])
        for path, leaf in trees.flatten(variables["params"]).items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("last", [5, 8], ids=["at the switch", "after it"])
def test_a_resumed_run_has_the_same_averages(
    last, undisturbed, config, course, tmp_path, stop_after_save, assert_same_bits
):
    run = tmp_path / "run"
    with stop_after_save(last):
        loop.run_config(config, run, quiet=True)
    loop.run_config(config, run, quiet=True)
    states = []
    for folder in (run, undisturbed):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            states.append(checkpoints.restore_latest(course.like)[0])
    assert int(states[0].step) == 9
    assert_same_bits(states[0].ema, states[1].ema)
    assert_same_bits(store.load(run / "model")[1], store.load(undisturbed / "model")[1])
