"""Regularisers in the trainer: the step by hand, on any number of devices, at no cost when off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR, normalise
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train import parallel, step
from jxfer.train.evaluate import source_relationship
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig
from tests.train.steps import EVERY_REGULARISER, SGD, on_one_device, prepare

RATES = {"head": 0.05, "backbone": 0.02}


@pytest.fixture(scope="module")
def make_config(small_config, entries):
    def make(regularise, strategy=StrategyConfig("full"), norms="standard", **fields):
        fields = {"model": ModelConfig(weights=entries[norms]), "optimizer": SGD, **fields}
        return small_config(regularise=regularise, strategy=strategy, **fields)

    return make


def make_batch(seed=0, examples=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (examples, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, examples).astype(np.int32),
    }


# The same objective, written out from the papers' equations over the whole network.


def shrunk(features, k):
    return sum(jnp.sort(jnp.linalg.svd(features, compute_uv=False) ** 2)[:k])


def by_hand(plan, start, relationship, config):
    """Gradients of the whole objective by the parameters, and its parts."""
    pretrained = {path for path in trees.flatten(start["params"]) if not path.startswith("head/")}
    pretrained -= {"source_head/kernel", "source_head/bias"}
    w0 = trees.flatten(start["params"])

    def objective(flat, stats, batch):
        params = trees.unflatten(flat)
        network = {name: part for name, part in params.items() if name != "source_head"}
        images = normalise(batch["image"], CIFAR)
        variables = {"params": network, "batch_stats": stats}
        outputs, _ = plan.model.apply(variables, images, plan.train_layers)
        before, _ = plan.model.apply(
            {"params": start["params"], "batch_stats": start["batch_stats"]}, images
        )
        logs = jax.nn.log_softmax(outputs["logits"])
        parts = {"loss": -logs[jnp.arange(len(images)), batch["label"]].mean()}
        if config.l2_sp:
            pull = sum(jnp.sum((flat[path] - w0[path]) ** 2) for path in pretrained)
            new = sum(jnp.sum(leaf**2) for path, leaf in flat.items() if path.startswith("head/"))
            parts["l2_sp"] = config.l2_sp / 2 * pull
            parts["l2_sp_head"] = config.l2_sp_head / 2 * new
        if config.delta:
            squares = [(outputs[s] - before[s]) ** 2 for s in ("stem", "stage1", "stage2")]
            parts["delta"] = config.delta / 2 * sum(s.mean((0, 1, 2)).sum() for s in squares)
        if config.co_tuning:
            head = params["source_head"]
            scores = jax.nn.log_softmax(outputs["pooled"] @ head["kernel"] + head["bias"][None])
            likely = jnp.asarray(relationship)[batch["label"]]
            parts["co_tuning"] = -config.co_tuning * (likely * scores).sum(-1).mean()
        if config.bss:
            parts["bss"] = config.bss * shrunk(outputs["pooled"], config.bss_k)
        return sum(parts.values()), parts

    return jax.jit(jax.grad(objective, has_aux=True))


@pytest.mark.slow
def test_steps_are_gradient_descent_on_the_objective_by_hand(make_config):
    """Three steps, so that the network is no longer at its start; each term, and their sum."""
    config = EVERY_REGULARISER
    pretrained, (plan,) = prepare(make_config(config))
    relationship = np.random.default_rng(1).dirichlet(np.ones(10), 3).astype(np.float32)
    start = pretrained.variables
    reference = plan.reference(start) | {"relationship": relationship}
    state = plan.initial_state(start)
    gradient = by_hand(plan, start, relationship, config)
    for i in range(3):
        batch = make_batch(i)
        before = trees.flatten(state.params)
        slopes, parts = gradient(before, state.batch_stats, batch)
        state, sums = on_one_device(plan)(state, batch, reference)
        assert sums.keys() - {"correct", "examples"} == parts.keys()
        for name, part in parts.items():
            assert sums[name] / 16 == pytest.approx(float(part), rel=1e-4, abs=1e-6)
        after = trees.flatten(state.params)
        for path, slope in slopes.items():
            rate = RATES["head" if path.startswith("head/") else "backbone"]
            wanted = before[path] - rate * np.asarray(slope)
            np.testing.assert_allclose(after[path], wanted, rtol=1e-4, atol=2e-6, err_msg=path)


def test_l2_sp_pulls_pretrained_parameters_alone_by_alpha_times_their_distance(make_config):
    alpha = 2.0
    pretrained, (plan,) = prepare(make_config(RegulariseConfig(l2_sp=alpha)))
    start = pretrained.variables
    leaves = trees.flatten(plan.reference(start)["params"])
    pull = plan.regularisers
    moved = {path: leaf + 0.25 for path, leaf in trees.flatten(start["params"]).items()}

    def value(flat):
        terms = pull.terms(trees.unflatten(flat), {}, None, plan.reference(start), {})
        return terms["l2_sp"]

    at_start = jax.grad(value)(trees.flatten(start["params"]))
    assert not any(np.any(slope) for slope in at_start.values())
    slopes = jax.grad(value)(moved)
    assert leaves.keys() == {path for path in slopes if np.any(slopes[path])}
    for path in leaves:
        np.testing.assert_allclose(slopes[path], alpha * 0.25, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one(make_config):
    """The norms are folded, so that no moments depend on the share of a device.

    All singular values of the global batch, so that rounding is not what is compared; a device's
    share, of two examples, has two.
    """
    config = make_config(dataclasses.replace(EVERY_REGULARISER, bss=1e-4, bss_k=16), norms="folded")
    pretrained, (plan,) = prepare(config)
    relationship = np.random.default_rng(1).dirichlet(np.ones(10), 3).astype(np.float32)
    reference = plan.reference(pretrained.variables) | {"relationship": relationship}
    state = plan.initial_state(pretrained.variables)
    rng = np.random.default_rng(2)  # away from the start, so that every term pulls
    moved = jax.tree.map(
        lambda leaf: leaf + rng.normal(scale=0.01, size=leaf.shape).astype(np.float32), state.params
    )
    state = dataclasses.replace(state, params=moved)
    batch = make_batch()
    one, sums = on_one_device(plan)(state, batch, reference)
    shards = {name: x.reshape(8, 2, *x.shape[1:]) for name, x in batch.items()}
    eight, eight_sums = parallel.compile_step(step.make_train_step(plan))(
        parallel.replicate(state), shards, parallel.replicate(reference)
    )
    for name, total in sums.items():
        assert parallel.fetch(eight_sums)[name] == pytest.approx(total, rel=1e-4)
    before = trees.flatten(moved)
    found, wanted = trees.flatten(parallel.fetch(eight.params)), trees.flatten(one.params)
    for path, leaf in before.items():
        np.testing.assert_allclose(
            found[path] - leaf, wanted[path] - leaf, rtol=1e-3, atol=1e-6, err_msg=path
        )


def test_what_is_off_holds_nothing_and_adds_nothing(make_config):
    pretrained, (plan,) = prepare(make_config(RegulariseConfig()))
    assert jax.tree.leaves(plan.reference(pretrained.variables)) == []
    assert plan.regularisers.terms({}, {}, None, {}, {}) == {}
    assert plan.regularisers.reference_features({}, {}, None) == {}
    assert source_relationship(pretrained, None, 16) == {}
    assert "source_head" not in plan.labels


@pytest.mark.parametrize(
    ("config", "strategy", "params", "statistics"),
    [
        (RegulariseConfig(l2_sp=1.0), StrategyConfig("partial", "stem"), {"stage1", "stage2"}, {}),
        (RegulariseConfig(l2_sp=1.0), StrategyConfig("bitfit"), {"stem", "stage1", "stage2"}, {}),
        (
            RegulariseConfig(delta=1.0),
            StrategyConfig("surgical", stages=("stage1",)),
            {"stage1"},
            {"stage1"},
        ),
        (
            RegulariseConfig(delta=1.0),
            StrategyConfig("partial", "stage1", frozen_norms="adapt"),
            {"stage2"},
            {"stem", "stage1", "stage2"},
        ),
        (RegulariseConfig(bss=1.0), StrategyConfig("full"), {}, {}),
    ],
    ids=["l2_sp partial", "l2_sp bitfit", "delta surgical", "delta adapt", "bss"],
)
def test_the_reference_holds_only_what_moves(config, strategy, params, statistics, make_config):
    pretrained, (plan,) = prepare(make_config(config, strategy))
    reference = plan.reference(pretrained.variables)
    assert reference["params"].keys() == set(params)
    assert reference["batch_stats"].keys() == set(statistics)
    assert set(trees.flatten(reference["params"])) <= plan.trainable


def test_delta_matches_from_the_first_stage_that_trains(make_config):
    surgical = StrategyConfig("surgical", stages=("stage1",))
    _, (plan,) = prepare(make_config(RegulariseConfig(delta=1.0), surgical))
    assert plan.regularisers.matched == ("stage1", "stage2")


def test_delta_ends_before_the_first_stage_that_is_new(make_config, entries):
    model = ModelConfig(weights=entries["standard"], reuse=("stem", "stage1"), arch="resnet20")
    _, (plan,) = prepare(make_config(RegulariseConfig(delta=1.0), model=model))
    assert plan.regularisers.matched == ("stem", "stage1")


def test_in_phases_each_acts_where_it_can(make_config):
    config = make_config(EVERY_REGULARISER, StrategyConfig("lp_ft"), norms="standard")
    pretrained, (head, everything) = prepare(config)
    names = ("l2_sp", "l2_sp_head", "delta", "co_tuning", "bss")
    assert [name for name in names if head.regularisers.acts(name)] == ["l2_sp_head"]
    assert all(everything.regularisers.acts(name) for name in names)
    assert jax.tree.leaves(head.reference(pretrained.variables)) == []
    assert set(trees.flatten(head.labels["source_head"]).values()) == {"frozen"}
    assert set(trees.flatten(everything.labels["source_head"]).values()) == {"low_lr/source_head"}
    assert everything.peaks["low_lr/source_head"] == everything.peaks["low_lr"] == 0.02


SCRATCH, PROBE = StrategyConfig("scratch"), StrategyConfig("linear_probe")


@pytest.mark.parametrize(
    ("config", "strategy", "words"),
    [
        (RegulariseConfig(l2_sp=0.1), PROBE, ("--regularise.l2-sp under linear_probe", "trains")),
        (RegulariseConfig(l2_sp=0.1), SCRATCH, ("--regularise.l2-sp under scratch", "trains")),
        (RegulariseConfig(delta=0.1), PROBE, ("--regularise.delta under linear_probe", "stage")),
        (RegulariseConfig(delta=0.1), SCRATCH, ("--regularise.delta under scratch", "stage")),
        (RegulariseConfig(bss=0.1), PROBE, ("--regularise.bss under linear_probe", "frozen")),
        (RegulariseConfig(co_tuning=0.1), PROBE, ("--regularise.co-tuning under", "frozen")),
        (RegulariseConfig(co_tuning=0.1), SCRATCH, ("--regularise.co-tuning needs", "classifier")),
    ],
)
def test_a_regulariser_with_nothing_to_act_on_is_refused(
    config, strategy, words, make_config, one_line
):
    with one_line(*words, "leave it out"):
        prepare(make_config(config, strategy))


def test_more_singular_values_than_a_batch_has_are_refused(make_config, one_line):
    with one_line("--regularise.bss-k 17", "16 examples of 32 features", "lower it"):
        prepare(make_config(RegulariseConfig(bss=0.1, bss_k=17)))


def test_the_singular_values_are_those_of_a_micro_batch(make_config, one_line):
    with one_line("--regularise.bss-k 9", "8 examples", "lower it"):
        prepare(make_config(RegulariseConfig(bss=0.1, bss_k=9), accumulate=2))


@pytest.mark.parametrize(
    "fields", [{"regularise": RegulariseConfig(delta=0.1)}, {"ema_decay": 0.9}]
)
def test_statistics_that_stop_moving_between_phases_have_no_average(fields, make_config, one_line):
    strategy = StrategyConfig("lp_ft", frozen_norms="adapt", trainable_norms="frozen")
    fields = {"regularise": RegulariseConfig(), **fields}
    with one_line("statistics of BatchNorm move in one phase and stop in the next"):
        prepare(make_config(fields.pop("regularise"), strategy, **fields))


def test_co_tuning_needs_the_classifier_of_the_stage_that_is_built(make_config, entries, one_line):
    model = ModelConfig(weights=entries["standard"], through="stage1")
    with one_line("--regularise.co-tuning needs", "on the last stage"):
        prepare(make_config(RegulariseConfig(co_tuning=0.1), model=model))


def test_l2_sp_stands_in_place_of_weight_decay(make_config, one_line):
    with one_line("--regularise.l2-sp", "--optimizer.weight-decay 0"):
        make_config(RegulariseConfig(l2_sp=0.1), optimizer=OptimizerConfig())


def test_the_report_counts_the_source_head_as_loaded(make_config):
    plain, _ = prepare(make_config(RegulariseConfig()))
    kept, (plan,) = prepare(make_config(RegulariseConfig(co_tuning=0.1)))
    ours = {"params/source_head/kernel", "params/source_head/bias"}
    assert set(kept.report.loaded) - set(plain.report.loaded) == ours
    assert set(plain.report.dropped) - set(kept.report.dropped) == {
        "params/head/linear/kernel",
        "params/head/linear/bias",
    }
    paths = {f"params/{path}" for path in trees.flatten(kept.variables["params"])}
    paths |= {f"batch_stats/{path}" for path in trees.flatten(kept.variables["batch_stats"])}
    assert paths == {*kept.report.loaded, *kept.report.reinitialised}
    assert plan.source_head == (32, 10)
