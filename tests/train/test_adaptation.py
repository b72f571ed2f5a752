"""Domain adaptation in the trainer: the step by hand, on any number of devices, and whole runs."""

import dataclasses
import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.data import screen
from jxfer.data.transforms import CIFAR, AugmentConfig, normalise
from jxfer.losses import adaptation as losses
from jxfer.losses.adaptation import AdaptConfig
from jxfer.train import feed, flops, loop, lr_find, parallel, step
from jxfer.train.adaptation import DOMAIN_HEAD
from jxfer.train.feature_store import CacheConfig
from jxfer.train.judge import has_diverged
from jxfer.train.plans import set_up
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import weights
from jxfer.zoo.pretrained import ModelConfig
from tests.conftest import CLASSES
from tests.train.steps import on_one_device

SGD = OptimizerConfig(
    lr=0.05, backbone_lr=0.02, momentum=0.0, weight_decay=0.0, schedule="constant"
)
METHODS = ("coral", "dan", "dann", "cdan", "mcc")


@pytest.fixture(scope="module")
def entries(make_entry):
    return {batchnorm: make_entry(batchnorm) for batchnorm in ("standard", "folded")}


@pytest.fixture(scope="module")
def other_domain(tmp_path_factory):
    """Images of the same classes, darker and noisier: 10 of each to train on, 5 to test on."""
    folder = tmp_path_factory.mktemp("target")
    rng = np.random.default_rng(5)
    for split, count in (("train", 10), ("test", 5)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                image[..., label] += 60
                cv2.imwrite(str(folder / split / name / f"{i}.png"), image)
    return folder


@pytest.fixture(scope="module")
def make_config(small_config, entries, other_domain):
    def make(method, norms="standard", **fields):
        adapt = fields.pop("adapt", {})
        defaults = {
            "model": ModelConfig(weights=entries[norms]),
            "strategy": StrategyConfig("full"),
            "optimizer": SGD,
        }
        target = None if method == "none" else f"folder:{other_domain}"
        config = AdaptConfig(method, **{"target": target, **adapt})
        return small_config(adapt=config, **{**defaults, **fields})

    return make


def prepare(config):
    pretrained, plans = set_up(config, CLASSES, total_steps=9, steps_per_epoch=2.25)
    return pretrained, plans


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
def test_a_step_is_gradient_descent_on_both_domains_by_hand(method, make_config):
    config = make_config(method, adapt={"weight": 0.5})
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
def test_eight_devices_take_the_step_of_one(method, make_config):
    """The norms are folded, so that no moments depend on the share of a device."""
    pretrained, (plan,) = prepare(make_config(method, norms="folded"))
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


def test_a_large_map_of_cdan_is_projected_at_random(make_config, monkeypatch):
    monkeypatch.setattr("jxfer.losses.adversarial._WIDEST_MAP", 10)
    pretrained, (plan,) = prepare(make_config("cdan"))
    reference = plan.reference(pretrained.variables, 3)
    features, classes = plan.model.shapes()["params"]["head"]["linear"]["kernel"].shape
    shapes = jax.tree.map(np.shape, reference["projections"])
    assert shapes["features"][0] == features
    assert shapes["probabilities"][0] == classes
    state = plan.initial_state(pretrained.variables)
    _, sums = on_one_device(plan)(state, make_batch(), reference)
    assert np.isfinite(sums["cdan"])
    assert flops.by_label(step.make_train_step(plan), plan, state, 2)["head", False] > 0


def test_the_start_up_table_counts_the_domain_classifier_and_both_domains(make_config):
    """1024 hidden units twice, of 32 pooled features: a multiplication and an addition each."""
    work = {}
    for method in ("none", "dann"):
        pretrained, (plan,) = prepare(make_config(method))
        state = plan.initial_state(pretrained.variables)
        work[method] = flops.by_label(step.make_train_step(plan), plan, state, 2)
    head = work["none"]["head", False]
    discriminator = 2 * (32 * 1024 + 1024 * 1024 + 1024)
    assert work["dann"]["head", False] == 2 * head + 4 * discriminator
    assert work["dann"]["low_lr", False] == 2 * work["none"]["low_lr", False]


def test_what_compares_domains_takes_no_mixed_images_and_more_than_one(make_config, one_line):
    with one_line("--adapt.method mcc", "--augment.mixup"):
        make_config("mcc", augment=AugmentConfig(mixup=0.2))
    with one_line("--adapt.method dan", "--accumulate"):
        prepare(make_config("dan", batch_size=8, accumulate=8))


def test_the_domain_classifier_moves_where_the_backbone_does(make_config):
    _, plans = prepare(make_config("dann", strategy=StrategyConfig("lp_ft")))
    heads = [set(trees.flatten(plan.labels[DOMAIN_HEAD]).values()) for plan in plans]
    assert heads == [{"frozen"}, {"head"}]
    assert [plan.adaptation.acts for plan in plans] == [False, True]
    first, second = (plan.total_steps for plan in plans)
    assert {plan.ramp for plan in plans} == {(first, second)}  # the reversal begins at 0


def test_nothing_of_it_is_in_a_run_that_does_not_adapt(make_config):
    pretrained, (plan,) = prepare(make_config("none"))
    assert DOMAIN_HEAD not in plan.labels
    assert DOMAIN_HEAD not in pretrained.variables["params"]
    assert not plan.adaptation.acts
    _, (other,) = prepare(make_config("source_only"))
    assert other == plan  # one compiled program


def test_an_adversary_of_frozen_features_is_refused(make_config, one_line):
    with one_line("--adapt.method dann", "linear_probe", "frozen"):
        prepare(make_config("dann", strategy=StrategyConfig("linear_probe")))


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[:-1]), "mcc"]
)
def test_a_run_says_how_it_does_on_the_target(method, make_config, tmp_path):
    config = make_config(method)
    found = loop.run_config(config, tmp_path / "run", quiet=True)
    adapt = found["adapt"]
    assert adapt["method"] == method
    assert (found["test_examples"], adapt["source_test_examples"]) == (15, 12)
    assert adapt["target_train_examples"] + adapt["target_val_examples"] == 30
    assert adapt["diverged"] in (True, False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line[f"train_{method}"]) for line in lines if "train_loss" in line)
    scores = [line["score"] for line in lines if "score" in line]
    assert adapt["score"] == max(scores) == found["val_accuracy"]
    card = weights.load(str(tmp_path / "run")).card
    assert [figure.dataset for figure in card.measured] == [config.data.source, config.adapt.target]
    assert DOMAIN_HEAD not in weights.load(str(tmp_path / "run")).variables["params"]


@pytest.mark.slow
@pytest.mark.parametrize("select", ["source", "importance_weighted", "entropy", "density"])
def test_no_label_of_the_target_changes_what_is_chosen(
    select, make_config, tmp_path, monkeypatch, assert_same_bits
):
    """With the target's labels and without: the same model, and other figures."""
    config = make_config("mcc", adapt={"select": select}, augment=AugmentConfig())
    right = loop.run_config(config, tmp_path / "right", quiet=True)

    opened, seen = feed.open_target, []

    def open_with_wrong_labels(*arguments):
        target = opened(*arguments)
        val, test = AllOfOneClass(target.val), AllOfOneClass(target.test)
        seen.append(dataclasses.replace(target, val=val, test=test))
        return seen[-1]

    monkeypatch.setattr(feed, "open_target", open_with_wrong_labels)
    wrong = loop.run_config(config, tmp_path / "wrong", quiet=True)
    assert right["best_step"] == wrong["best_step"]
    assert right["adapt"]["score"] == wrong["adapt"]["score"]
    assert [set(target.test.labels) for target in seen] == [{0}]
    first, second = (weights.load(str(tmp_path / name)).variables for name in ("right", "wrong"))
    assert_same_bits(first, second)


class AllOfOneClass:
    """A source that says that every image is of its first class."""

    def __init__(self, source):
        self._source = source
        self.class_names = source.class_names
        self.name = source.name

    @property
    def labels(self):
        return np.zeros(len(self), np.int32)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return dataclasses.replace(self._source[index], label=0)


def test_training_never_sees_a_label_of_the_target(make_config):
    target = feed.load_target(make_config("mcc"), CLASSES)
    assert set(target.train.labels) == {-1}
    assert {target.train[i].label for i in range(len(target.train))} == {-1}


@pytest.mark.slow
def test_a_cached_prefix_changes_nothing(make_config, tmp_path):
    runs = {}
    for mode in ("off", "memory"):
        config = make_config(
            "dan",
            strategy=StrategyConfig("partial", "stage1"),
            augment=AugmentConfig(flip=True, views=2),
            cache=CacheConfig(mode=mode),
            epochs=1.5,
        )
        loop.run_config(config, tmp_path / mode, quiet=True)
        runs[mode] = trees.flatten(weights.load(str(tmp_path / mode)).variables)
    for path, leaf in runs["off"].items():
        largest = np.abs(leaf).max()
        np.testing.assert_allclose(
            runs["memory"][path], leaf, rtol=0, atol=1e-5 * largest, err_msg=path
        )


def test_two_domains_of_one_size_do_not_meet_in_the_same_pairs(make_config, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    config = make_config("mcc", adapt={"target": f"folder:{tmp_path / 'copy'}"}, batch_size=8)
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
    assert has_diverged(last, best, examples=100, classes=10) is diverged


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adabn", "cdan"])
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    method, make_config, tmp_path, assert_same_bits
):
    """As a kill after a checkpoint in the middle would have left it."""
    config = make_config(method, adapt={"select": "entropy"}, checkpoint_every=3)
    whole, part = tmp_path / "whole", tmp_path / "part"
    wanted = loop.run_config(config, whole, quiet=True)
    shutil.copytree(whole, part)
    (part / "summary.json").unlink()
    shutil.rmtree(part / "model")
    newest = max(int(path.name) for path in (part / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(part / "checkpoints" / str(newest))
    found = loop.run_config(config, part, quiet=True)
    assert json.loads((part / "timing.json").read_text())["steps"] < found["steps"]
    assert found == wanted
    variables = [weights.load(str(run)).variables for run in (part, whole)]
    assert_same_bits(*variables)


@pytest.mark.slow
def test_adabn_saves_the_model_with_the_targets_statistics(make_config, tmp_path):
    found = {}
    for method in ("source_only", "adabn"):
        loop.run_config(make_config(method), tmp_path / method, quiet=True)
        found[method] = weights.load(str(tmp_path / method)).variables
    params = (trees.flatten(found[method]["params"]) for method in found)
    for path, leaf in next(params).items():
        np.testing.assert_array_equal(trees.flatten(found["adabn"]["params"])[path], leaf)
    means = [found[method]["batch_stats"]["stem"]["norm"]["mean"] for method in found]
    assert not np.allclose(*means)


def test_adabn_needs_norms_of_its_own(make_config, one_line, tmp_path):
    with one_line("--adapt.method adabn", "folded"):
        loop.run_config(make_config("adabn", norms="folded"), tmp_path / "run", quiet=True)


def test_a_sweep_of_rates_takes_no_target(make_config, one_line):
    with one_line("--adapt", "labelled images alone"):
        lr_find.find(make_config("mcc"))
