"""Domain adaptation in the trainer: the step by hand, on any number of devices, and whole runs."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.data import screen
from jxfer.data.transforms import CIFAR, AugmentConfig, normalise
from jxfer.losses import adaptation as losses
from jxfer.train import feed, flops, lr_find, parallel, step
from jxfer.train.adaptation import DOMAIN_HEAD
from jxfer.train.judge import has_diverged
from jxfer.train.phases import Course
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from tests.conftest import CLASSES
from tests.train.steps import on_one_device, prepare

METHODS = ("coral", "dan", "dann", "cdan", "mcc")


def make_batch(seed=0, examples=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (examples, 8, 8, 3), dtype=np.uint8),
        "target_image": rng.integers(0, 120, (examples, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, examples).astype(np.int32),
    }


def by_hand(plan, config, batch, steps):
    """Objective and gradients of one batch of both domains, without the reversal layer.

    The discriminator descends on its loss, all else ascends: two gradients in place of one.
    """

    def parts(flat, stats):
        params = trees.unflatten(flat)
        images = np.concatenate([batch["image"], batch["target_image"]])
        network = {name: part for name, part in params.items() if name != DOMAIN_HEAD}
        variables = {"params": network, "batch_stats": stats}
        outputs, _ = plan.model.apply(variables, normalise(images, CIFAR), plan.train_layers)
        source, target = outputs["logits"][:16], outputs["logits"][16:]
        logs = jax.nn.log_softmax(source)
        loss = -logs[jnp.arange(16), batch["label"]].mean()
        if config.method == "mcc":
            return loss, losses.mcc(target, config.temperature)
        if config.method == "coral":
            return loss, losses.coral(source, target)
        if config.method == "dan":
            pooled = outputs["pooled"]
            return loss, losses.mmd(pooled[:16], pooled[16:]) + losses.mmd(source, target)
        x, weights = outputs["pooled"], jnp.ones(32)
        if config.method == "cdan":
            p = jax.lax.stop_gradient(jax.nn.softmax(outputs["logits"]))
            x = jnp.einsum("bc,bk->bck", x, p).reshape(32, -1)
            weights = 1 + jnp.exp(jnp.sum(p * jnp.log(p), -1))
        for name in ("hidden1", "hidden2"):
            layer = params[DOMAIN_HEAD][name]
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
        layer = params[DOMAIN_HEAD]["output"]
        x = (x @ layer["kernel"])[:, 0] + layer["bias"]
        weights = weights * jnp.where(
            jnp.arange(32) < 16, 1 / weights[:16].sum(), 1 / weights[16:].sum()
        )
        signs = jnp.where(jnp.arange(32) < 16, 1.0, -1.0)
        return loss, jnp.sum(weights * jax.nn.softplus(-signs * x)) / 2

    def gradients(flat, stats):
        loss, term = parts(flat, stats)
        of_loss = jax.grad(lambda flat: parts(flat, stats)[0])(flat)
        of_term = jax.grad(lambda flat: parts(flat, stats)[1])(flat)
        strength = 2 / (1 + np.exp(-10 * steps / 9)) - 1 if config.is_adversarial else -1
        slopes = {
            path: slope
            + config.weight
            * (of_term[path] if path.startswith(DOMAIN_HEAD) else -strength * of_term[path])
            for path, slope in of_loss.items()
        }
        return slopes, {"loss": loss, config.method: config.weight * term}

    return jax.jit(gradients)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_gradient_descent_on_both_domains_by_hand(method, adapted_config):
    config = adapted_config(method, adapt={"weight": 0.5})
    pretrained, (plan,) = prepare(config)
    batch = make_batch()
    state = plan.initial_state(pretrained.variables)
    state = dataclasses.replace(state, step=np.int32(4))
    before = trees.flatten(state.params)
    slopes, parts = by_hand(plan, config.adapt, batch, 4)(before, state.batch_stats)
    after, sums = on_one_device(plan)(state, batch, plan.reference(pretrained.variables))
    assert sums.keys() - {"correct", "examples"} == parts.keys()
    for name, part in parts.items():
        assert sums[name] / 16 == pytest.approx(float(part), rel=1e-4, abs=1e-6)
    found = trees.flatten(after.params)
    for path, slope in slopes.items():
        rate = 0.05 if path.startswith(("head/", DOMAIN_HEAD)) else 0.02
        wanted = before[path] - rate * np.asarray(slope)
        np.testing.assert_allclose(found[path], wanted, rtol=1e-4, atol=3e-6, err_msg=path)
    moved = [path for path in found if np.any(found[path] != before[path])]
    assert any(path.startswith("stage1") for path in moved)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_take_the_step_of_one(method, adapted_config):
    """The norms are folded, so that no moments depend on the share of a device."""
    pretrained, (plan,) = prepare(adapted_config(method, norms="folded"))
    reference = plan.reference(pretrained.variables)
    state = plan.initial_state(pretrained.variables)
    state = dataclasses.replace(state, step=np.int32(4))
    batch = make_batch()
    one, sums = on_one_device(plan)(state, batch, reference)
    shards = {name: x.reshape(8, 2, *x.shape[1:]) for name, x in batch.items()}
    eight, eight_sums = parallel.compile_step(step.make_train_step(plan))(
        parallel.replicate(state), shards, parallel.replicate(reference)
    )
    for name, total in sums.items():
        assert parallel.fetch(eight_sums)[name] == pytest.approx(total, rel=1e-4)
    before = trees.flatten(state.params)
    found, wanted = trees.flatten(parallel.fetch(eight.params)), trees.flatten(one.params)
    for path, leaf in before.items():
        np.testing.assert_allclose(
            found[path] - leaf, wanted[path] - leaf, rtol=1e-3, atol=1e-6, err_msg=path
        )


@pytest.mark.slow
def test_parts_of_a_batch_take_its_step(adapted_config):
    """DANN's loss is a mean over the images of each domain, so parts of one size average to it."""
    steps = []
    for accumulate in (1, 2):
        config = adapted_config("dann", norms="folded", accumulate=accumulate)
        pretrained, (plan,) = prepare(config)
        state = dataclasses.replace(plan.initial_state(pretrained.variables), step=np.int32(4))
        steps.append(on_one_device(plan)(state, make_batch(), plan.reference(pretrained.variables)))
    (one, sums), (two, part_sums) = steps
    for name, total in sums.items():
        assert part_sums[name] == pytest.approx(total, rel=1e-4)
    found = trees.flatten(two.params)
    for path, leaf in trees.flatten(one.params).items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_large_map_of_cdan_is_projected_at_random(adapted_config, monkeypatch):
    monkeypatch.setattr("jxfer.losses.adversarial._WIDEST_MAP", 10)
    pretrained, (plan,) = prepare(adapted_config("cdan"))
    reference = plan.reference(pretrained.variables, 3)
    features, classes = plan.model.shapes()["params"]["head"]["linear"]["kernel"].shape
    shapes = jax.tree.map(np.shape, reference["projections"])
    assert shapes["features"][0] == features
    assert shapes["probabilities"][0] == classes
    state = plan.initial_state(pretrained.variables)
    _, sums = on_one_device(plan)(state, make_batch(), reference)
    assert np.isfinite(sums["cdan"])
    assert flops.by_label(step.make_train_step(plan), plan, state, 2, reference)["head", False] > 0


def test_the_start_up_table_counts_the_domain_classifier_and_both_domains(adapted_config):
    """1024 hidden units twice, of 32 pooled features: a multiplication and an addition each."""
    work = {}
    for method in ("none", "dann"):
        pretrained, (plan,) = prepare(adapted_config(method))
        state = plan.initial_state(pretrained.variables)
        work[method] = flops.by_label(step.make_train_step(plan), plan, state, 2)
    head = work["none"]["head", False]
    discriminator = 2 * (32 * 1024 + 1024 * 1024 + 1024)
    assert work["dann"]["head", False] == 2 * head
    assert work["dann"]["head/domain_head", False] == 4 * discriminator
    assert work["dann"]["low_lr", False] == 2 * work["none"]["low_lr", False]


def test_what_compares_domains_takes_no_mixed_images_and_more_than_one(adapted_config, one_line):
    with one_line("--adapt.method mcc", "--augment.mixup"):
        adapted_config("mcc", augment=AugmentConfig(mixup=0.2))
    for method in ("coral", "dan", "mcc"):
        with one_line(f"--adapt.method {method}", "--accumulate"):
            prepare(adapted_config(method, batch_size=8, accumulate=8))


def test_the_domain_classifier_moves_where_the_backbone_does(adapted_config):
    _, plans = prepare(adapted_config("dann", strategy=StrategyConfig("lp_ft")))
    heads = [set(trees.flatten(plan.labels[DOMAIN_HEAD]).values()) for plan in plans]
    assert heads == [{"frozen"}, {"head/domain_head"}]
    assert [plan.adaptation.acts for plan in plans] == [False, True]
    first, second = (plan.total_steps for plan in plans)
    assert {plan.ramp for plan in plans} == {(first, second)}  # the reversal begins at 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("strategy", ["lp_ft", "gradual"])
def test_the_domain_classifier_begins_later_than_the_head(strategy, name, adapted_config):
    """Momentum and moments of the head go on; its own begin."""
    config = adapted_config(
        "dann", strategy=StrategyConfig(strategy), optimizer=OptimizerConfig(name=name)
    )
    pretrained, plans = prepare(config)
    course = Course(plans, plans[0].initial_state(pretrained.variables))
    state = jax.tree.map(np.ones_like, course.initial)
    for index in range(1, len(plans)):
        state = course.enter(state, index)
        leaves = {
            label: jax.tree.leaves(group) for label, group in state.opt_state.inner_states.items()
        }
        assert all(leaf.any() for leaf in leaves["head"] if leaf.ndim)
        begins = index == 1
        assert begins != any(leaf.any() for leaf in leaves["head/domain_head"] if leaf.ndim)
        state = jax.tree.map(np.ones_like, state)


def test_nothing_of_it_is_in_a_run_that_does_not_adapt(adapted_config):
    pretrained, (plan,) = prepare(adapted_config("none"))
    assert DOMAIN_HEAD not in plan.labels
    assert DOMAIN_HEAD not in pretrained.variables["params"]
    assert not plan.adaptation.acts
    _, (other,) = prepare(adapted_config("source_only"))
    assert other == plan  # one compiled program


def test_an_adversary_of_frozen_features_is_refused(adapted_config, one_line):
    with one_line("--adapt.method dann", "linear_probe", "frozen"):
        prepare(adapted_config("dann", strategy=StrategyConfig("linear_probe")))


def test_training_never_sees_a_label_of_the_target(adapted_config):
    target = feed.load_target(adapted_config("mcc"), CLASSES)
    assert set(target.train.labels) == {-1}
    assert {target.train[i].label for i in range(len(target.train))} == {-1}


def test_two_domains_of_one_size_do_not_meet_in_the_same_pairs(adapted_config, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    config = adapted_config("mcc", adapt={"target": f"folder:{tmp_path / 'copy'}"}, batch_size=8)
    target = feed.load_target(config, CLASSES)
    splits = screen.load_splits(config.data)
    stream = feed.Images(config, splits, CIFAR, target.train).train_batches(0)
    batches = [next(stream) for _ in range(4)]
    assert all(batch["image"].shape == batch["target_image"].shape for batch in batches)
    assert not any(np.array_equal(b["image"], b["target_image"]) for b in batches)


@pytest.mark.parametrize(
    ("last", "best", "diverged"), [(90, 92, False), (46, 92, True), (10, 12, True), (12, 12, False)]
)
def test_a_run_that_loses_half_of_its_best_accuracy_has_diverged(last, best, diverged):
    assert has_diverged(last, best, commonest=10) is diverged


def test_a_run_that_says_one_class_of_all_has_diverged():
    """83 bees and 70 ants."""
    assert has_diverged(83, 146, commonest=83)


def test_a_sweep_of_rates_takes_no_target(adapted_config, one_line):
    with one_line("--adapt", "labelled images alone"):
        lr_find.find(adapted_config("mcc"))
