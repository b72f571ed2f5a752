"""What a strategy freezes does not move, statistics included; what it trains does."""

import typing
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from jxfer import trees
from jxfer.train import loop, parallel, step
from jxfer.train.plans import set_up
from jxfer.transfer import strategy as strategies
from jxfer.transfer.labels import FROZEN
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig
from tests.conftest import CLASSES
from tests.hypotheses import examples
from tests.train import steps


@pytest.fixture(scope="module")
def entry(make_entry):
    return make_entry("standard")


@pytest.fixture(scope="module")
def make_config(small_config, entry):
    def make(strategy, **fields):
        model = ModelConfig(weights=entry)
        optimizer = OptimizerConfig(lr=0.1, weight_decay=0.1, decay_norm_and_bias=True)
        return small_config(
            model=model, strategy=strategy, optimizer=optimizer, epochs=2.0, **fields
        )

    return make


def prepare(config):
    pretrained, (plan,) = set_up(config, CLASSES, total_steps=5, steps_per_epoch=2.25)
    return pretrained, plan


def part(path):
    """`params/stage1/block0/conv1/kernel` -> `stage1`."""
    return path.split("/")[1]


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [
        (StrategyConfig("linear_probe"), {"stem", "stage1", "stage2"}),
        (StrategyConfig("partial", "stage1"), {"stem", "stage1"}),
    ],
    ids=["linear probe", "partial"],
)
def test_frozen_leaves_keep_every_bit_and_all_others_move(
    strategy, frozen, make_config, entry, read_state, tmp_path
):
    config = make_config(strategy)
    summary = loop.run_config(config, tmp_path / "run", quiet=True)
    state = read_state(config, tmp_path / "run")
    assert int(state.step) == 5
    pretrained, _ = prepare(config)
    start = trees.flatten(pretrained.variables)  # the head too: its seed is the run's
    _, stored = store.load(entry)
    start |= {p: leaf for p, leaf in trees.flatten(stored).items() if part(p) != "head"}
    end = trees.flatten({"params": state.params, "batch_stats": state.batch_stats})
    assert end.keys() == start.keys()
    unmoved = {path for path in start if np.array_equal(start[path], end[path])}
    assert unmoved == {path for path in start if part(path) in frozen}
    assert any(path.startswith("batch_stats/stem") for path in unmoved)
    assert summary["frozen_unchanged"] is True


def test_frozen_leaves_are_all_but_the_heads(make_config):
    pretrained, plan = prepare(make_config(StrategyConfig("linear_probe")))
    leaves = plan.frozen_leaves(plan.initial_state(pretrained.variables))
    paths = trees.flatten(pretrained.variables)
    assert leaves.keys() == {path for path in paths if part(path) != "head"}


BACKBONE = ("stem", "stage1", "stage2")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (StrategyConfig("scratch"), ["head", "head", "head", "head"]),
        (StrategyConfig("linear_probe"), ["frozen", "frozen", "frozen", "head"]),
        (StrategyConfig("partial", "stem"), ["frozen", "low_lr", "low_lr", "head"]),
        (StrategyConfig("partial", "stage1"), ["frozen", "frozen", "low_lr", "head"]),
        (StrategyConfig("partial", "stage2"), ["frozen", "frozen", "frozen", "head"]),
        (StrategyConfig("full"), ["low_lr", "low_lr", "low_lr", "head"]),
    ],
    ids=lambda value: f"{value.name}-{value.freeze_through}" if hasattr(value, "name") else "",
)
def test_each_strategy_has_this_exact_mask(strategy, expected, make_config):
    _, plan = prepare(make_config(strategy))
    labels = trees.flatten(plan.labels)
    by_stage = {
        stage: {label for path, label in labels.items() if path.startswith(f"{stage}/")}
        for stage in (*BACKBONE, "head")
    }
    assert by_stage == {
        stage: {label} for stage, label in zip((*BACKBONE, "head"), expected, strict=True)
    }
    moving = {path for path, label in labels.items() if label != "frozen"}
    assert plan.trainable == moving
    norms = {path.rpartition("/")[0] for path in moving if "norm" in path}
    assert plan.train_layers == norms


def test_the_norms_of_a_folded_entry_stay_frozen_when_everything_trains(small_config, make_entry):
    model = ModelConfig(weights=make_entry("folded"))
    _, plan = prepare(small_config(model=model, strategy=StrategyConfig("full")))
    assert plan.train_layers == frozenset()


def test_the_norms_of_a_folded_entry_train_from_scratch(small_config, make_entry):
    model = ModelConfig(weights=make_entry("folded"))
    _, plan = prepare(small_config(model=model, strategy=StrategyConfig("scratch")))
    assert plan.train_layers == frozenset(plan.model.norm_paths())


def test_the_optimizer_holds_nothing_for_frozen_leaves(make_config):
    pretrained, plan = prepare(make_config(StrategyConfig("partial", "stage1")))
    opt_state = plan.initial_state(pretrained.variables).opt_state
    held = sum(leaf.size for leaf in jax.tree.leaves(opt_state))
    params = trees.flatten(pretrained.variables["params"])
    moving = sum(leaf.size for path, leaf in params.items() if path.startswith(("stage2", "head")))
    assert held == moving + 2  # and one step count for each of the two groups


STAGES = ("stem", "stage1")  # of `steps.make_plan`
GROUPS = (".*/norm1/.*", "stem/.*", "stage1/block1/.*", "stage1/.*", "head/.*")


@st.composite
def drawn_plans(draw, name):
    """The plan of a phase of a strategy, with options that it has a use for."""
    options = {
        "freeze_through": st.sampled_from(STAGES),
        "stages": st.sampled_from([("stem",), ("stage1",), STAGES]),
        "rules": st.tuples(*[st.sampled_from([FROZEN, "low_lr", "head"])] * len(GROUPS))
        .filter(lambda labels: set(labels) != {FROZEN})
        .map(lambda labels: tuple(map("=".join, zip(GROUPS, labels, strict=True)))),
        "frozen_norms": st.sampled_from(["frozen", "adapt"]),
        "trainable_norms": st.sampled_from(["train", "frozen"]),
    }
    used = {field: draw(o) for field, o in options.items() if name in strategies._USES[field]}
    optimizer = OptimizerConfig(
        draw(st.sampled_from(["sgd", "adamw"])),
        lr=0.1,
        layer_decay=draw(st.sampled_from([None, 0.5])),
        clip_norm=draw(st.sampled_from([None, 1.0])),
        weight_decay=0.1,
        decay_norm_and_bias=True,
    )
    phases = strategies.phases(StrategyConfig(name, **used), STAGES, per_stage=optimizer.per_stage)
    phase = draw(st.sampled_from(phases[::-1]))
    return steps.make_plan(phase=phase, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", typing.get_args(strategies.Name))
def test_real_steps_move_no_frozen_leaf_and_no_stored_statistic(name):
    """Two on all devices, as a run takes them; whatever else there is moves."""

    @seed(zlib.crc32(name.encode()))
    @examples(2)
    @given(drawn_plans(name), st.integers(0, 2**31))
    def check(plan, seed):
        rng = np.random.default_rng(seed)
        start = trees.flatten(plan.model.init(seed))
        for path in start:
            if path.startswith("batch_stats/"):  # not where they begin, and no ReLU dies
                start[path] += rng.uniform(-0.1, 0.1, start[path].shape).astype(np.float32)
        still = {
            f"params/{p}" for p, label in trees.flatten(plan.labels).items() if label == FROZEN
        }
        still |= {path for path in start if path.startswith("batch_stats/") and stored(plan, path)}
        state = parallel.replicate(plan.initial_state(trees.unflatten(start), seed))
        (batch,) = parallel.shard([steps.draw_batch()])
        rates = parallel.replicate(plan.rate_table)
        for _ in range(2):
            state, _ = step.compiled_train_step(plan)(state, batch, {}, rates)
        state = parallel.fetch(state)
        assert set(plan.frozen_leaves(state)) == still
        end = trees.flatten({"params": state.params, "batch_stats": state.batch_stats})
        assert {path for path in end if trees.same_bits(end[path], start[path])} == still

    check()


def stored(plan, statistic):
    """By the options of a strategy: whether the averages of a norm stay."""
    norm = statistic.removeprefix("batch_stats/").rpartition("/")[0]
    labels = trees.flatten(plan.labels)
    if {labels[f"{norm}/scale"], labels[f"{norm}/bias"]} == {FROZEN}:
        return plan.phase.frozen_norms == "frozen"
    return plan.phase.trainable_norms == "frozen"
