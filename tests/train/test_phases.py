"""Runs of several phases: the switch is exact, and a kill around it changes no bit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR
from jxfer.train import loop, step
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.phases import Course
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig
from tests.runs import flip_a_bit, largest_file, lines, summary
from tests.train.conftest import make_course
from tests.train.steps import compiled


@pytest.fixture(scope="module")
def make_config(small_config, make_entry):
    """Stem and stage 1, pretrained; 9 steps in 4 epochs."""
    entry = make_entry("standard")

    def make(strategy, **fields):
        fields = {"optimizer": OptimizerConfig(lr=0.05, weight_decay=0.01), **fields}
        return small_config(
            model=ModelConfig(weights=entry, through="stage1"), strategy=strategy, **fields
        )

    return make


@pytest.fixture(scope="module")
def config(make_config):
    """lp_ft: five steps of the head, four of everything; a log line would straddle the switch."""
    return make_config(StrategyConfig("lp_ft"), log_every=3, checkpoint_every=1)


def by_path(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def course(config):
    return make_course(config)


@pytest.mark.parametrize(("steps", "index"), [(0, 0), (1, 0), (5, 0), (6, 1), (9, 1)])
def test_a_step_belongs_to_the_phase_that_takes_it(steps, index, course):
    assert course.ends == (5, 9)
    assert [course.start(i) for i in (0, 1)] == [0, 5]
    assert course.index(steps) == index
    held = set(course.like(steps).opt_state.inner_states)
    assert held == ({"frozen", "head"} if index == 0 else {"frozen", "head", "low_lr"})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_switch_keeps_what_trained_and_starts_the_rest_and_the_schedules_anew(
    name, make_config
):
    course = make_course(make_config(StrategyConfig("lp_ft"), optimizer=OptimizerConfig(name)))
    rng = np.random.default_rng(0)
    old = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) if leaf.ndim else np.int32(5),
        course.initial.opt_state,
    )
    state = dataclasses.replace(course.initial, opt_state=old, step=np.int32(5))
    entered = course.enter(state, 1)
    before, after = by_path(old), by_path(entered.opt_state)
    moments = {path for path in before if "head" in path and before[path].ndim}
    assert len(moments) == {"sgd": 2, "adamw": 4}[name]  # of the kernel and the bias
    for path in moments:
        np.testing.assert_array_equal(after[path], before[path])
    counts = {path: int(leaf) for path, leaf in after.items() if not leaf.ndim}
    kept = {path for path, count in counts.items() if count}
    # The count of Adam's moments goes with them; that of the schedule starts anew.
    assert all("inner_states.head" in path for path in kept)
    assert len(kept) == {"sgd": 0, "adamw": 1}[name]
    assert all(not np.any(leaf) for path, leaf in after.items() if "low_lr" in path)
    assert jax.tree.structure(entered) == jax.tree.structure(course.like(6))


def test_a_label_whose_leaves_change_between_phases_is_refused(course):
    plan = course.plans[1]
    other = dataclasses.replace(
        plan.phase, rules=(("stem/.*", "low_lr"), ("stage1/.*", "frozen"), ("head/.*", "head"))
    )
    broken = Course((dataclasses.replace(plan, phase=other), plan), course.initial)
    first = broken.plans[0].initial_state({"params": course.initial.params})
    with pytest.raises(ValueError, match="the leaves of low_lr change"):
        broken.enter(first, 1)


@pytest.mark.slow
def test_steps_across_the_switch_are_sgd_with_momentum_by_hand(make_config):
    """v = 0.9 v + g + decay * p and p -= rate * v, one step of the head and two of everything.

    The gradients are taken outside, of the whole network at once.
    """
    optimizer = OptimizerConfig(lr=0.05, backbone_lr=0.02, weight_decay=0.01, schedule="constant")
    config = make_config(StrategyConfig("lp_ft", phase_epochs=0.4), epochs=1.2, optimizer=optimizer)
    course = make_course(config)
    assert course.ends == (1, 3)
    rng = np.random.default_rng(0)
    model = course.plans[0].model
    params, stats = course.initial.params, course.initial.batch_stats
    velocity = {path: np.zeros_like(leaf) for path, leaf in trees.flatten(params).items()}
    state = course.initial
    for i in range(3):
        images = rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
        labels = rng.integers(0, 3, 16).astype(np.int32)
        plan = course.plans[min(i, 1)]
        if i == 1:
            state = course.enter(state, 1)
        state = take_step(plan, state, images, labels)
        gradients, stats = by_hand(model, plan.train_layers)(params, stats, images, labels)
        flat, slopes = trees.flatten(params), trees.flatten(gradients)
        for path, leaf in flat.items():
            if i == 0 and not path.startswith("head/"):
                continue
            decay = 0.01 if leaf.ndim > 1 else 0.0
            velocity[path] = 0.9 * velocity[path] + slopes[path] + decay * leaf
            rate = 0.05 if path.startswith("head/") else 0.02
            flat[path] = leaf - rate * velocity[path]
        params = trees.unflatten(flat)
        found = trees.flatten(state.params)
        for path, wanted in flat.items():
            np.testing.assert_allclose(found[path], wanted, rtol=1e-4, atol=1e-6, err_msg=path)


def take_step(plan, state, images, labels):
    """One step of ours, on one device."""
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (state, images, labels))
    state, _ = compiled(plan)(first[0], {"image": first[1], "label": first[2]})
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], state)


@functools.cache
def by_hand(model, norms):
    """Gradients of all parameters, and the new statistics."""

    def loss(params, stats, images, labels):
        variables = {"params": params, "batch_stats": stats}
        outputs, moved = model.apply(variables, step.normalise(images, CIFAR), norms)
        chosen = jax.nn.log_softmax(outputs["logits"])[np.arange(16), labels]
        return -chosen.mean(), moved

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("phases") / "run"
    loop.run_config(config, run, quiet=True)
    return run


def test_a_line_says_its_phase_and_never_straddles_two(undisturbed):
    train = [line for line in lines(undisturbed) if "train_loss" in line]
    ends = {line["step"]: line["phase"] for line in train}
    assert {3: "head", 5: "head", 6: "all", 9: "all"}.items() <= ends.items()
    assert all(phase == ("head" if end <= 5 else "all") for end, phase in ends.items())
    for line in train:
        assert ("lr/low_lr" in line) == (line["phase"] == "all")
    # Each phase has a cosine of its own from the peak: over five steps, then over four.
    rates = {line["step"]: line["lr/head"] for line in train}
    for end, taken, total in ((3, 2, 5), (5, 4, 5), (6, 0, 4), (9, 3, 4)):
        assert rates[end] == pytest.approx(0.05 * (1 + np.cos(np.pi * taken / total)) / 2)


def test_the_summary_tells_the_phases_apart(undisturbed):
    found = summary(undisturbed)
    assert found["strategy"] == "lp_ft"
    head, everything = found["phases"]
    assert (head["name"], head["steps"]) == ("head", 5)
    assert (everything["name"], everything["steps"]) == ("all", 4)
    assert head["frozen_unchanged"] is True
    assert everything["frozen_unchanged"] is None
    assert found["frozen_unchanged"] is True
    assert head["parameters"] == {"frozen": everything["parameters"]["low_lr"], "head": 51}
    assert found["parameters"] == {"frozen": 0, **everything["parameters"]}
    assert head["optimizer_state_bytes"] == {"frozen": 0, "head": 4 * 51 + 4}
    assert found["optimizer_state_bytes"]["low_lr"] == 4 * found["parameters"]["low_lr"] + 4


@pytest.mark.parametrize("last", [4, 5, 6], ids=["before", "at", "after"])
def test_a_kill_around_the_switch_changes_no_bit(
    last, config, undisturbed, tmp_path, stop_after_save, assert_same_bits, caplog
):
    run = tmp_path / "run"
    with stop_after_save(last):
        loop.run_config(config, run, quiet=True)
    loop.run_config(config, run, quiet=True)
    assert f"resumes from step {last} of 9" in caplog.text
    assert_same_end(config, run, undisturbed, assert_same_bits)


def assert_same_end(config, run, undisturbed, assert_same_bits):
    course = make_course(config)
    states = []
    for folder in (run, undisturbed):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            states.append(checkpoints.restore_latest(course.like)[0])
    found, wanted = ({**by_path(state)} for state in states)
    assert found["step"] == 9
    assert_same_bits(found, wanted)
    assert lines(run) == lines(undisturbed)
    assert summary(run) == summary(undisturbed)


def test_a_kill_in_the_switch_itself_changes_no_bit(
    config, undisturbed, tmp_path, monkeypatch, assert_same_bits
):
    run = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(self, state, index):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Course, "enter", stop)
        with pytest.raises(Stop):
            loop.run_config(config, run, quiet=True)
    loop.run_config(config, run, quiet=True)
    assert_same_end(config, run, undisturbed, assert_same_bits)


def test_a_rotten_checkpoint_after_the_switch_goes_back_through_it(
    config, undisturbed, tmp_path, stop_after_save, assert_same_bits, caplog
):
    run = tmp_path / "run"
    with stop_after_save(6):
        loop.run_config(config, run, quiet=True)
    flip_a_bit(largest_file(run / "checkpoints/6/state"))
    loop.run_config(config, run, quiet=True)
    assert "resumes from step 5 of 9" in caplog.text
    assert_same_end(config, run, undisturbed, assert_same_bits)


@pytest.mark.slow
def test_gradual_unfreezes_a_stage_a_phase_from_the_top(make_config, tmp_path):
    config = make_config(StrategyConfig("gradual"), epochs=4.0, checkpoint_every=100)
    result = loop.run_config(config, tmp_path / "run", quiet=True)
    phases = result["phases"]
    assert [phase["name"] for phase in phases] == ["head", "stage1", "stem"]
    assert [phase["steps"] for phase in phases] == [3, 2, 4]
    assert [phase["frozen_unchanged"] for phase in phases] == [True, True, None]
    assert [list(phase["parameters"]) for phase in phases] == [
        ["frozen", "head"],
        ["frozen", "low_lr/stage1", "head"],
        ["low_lr/stem", "low_lr/stage1", "head"],
    ]


def test_the_summary_would_tell_a_frozen_leaf_that_moved(course):
    assert course.frozen_unchanged(dataclasses.replace(course.initial, step=np.int32(5))) is True
    for collection, path in (("params", "stem/conv/kernel"), ("batch_stats", "stem/norm/mean")):
        flat = trees.flatten(getattr(course.initial, collection))
        flat[path] = flat[path] + 1e-7
        moved = dataclasses.replace(
            course.initial, step=np.int32(5), **{collection: trees.unflatten(flat)}
        )
        assert course.frozen_unchanged(moved) is False
