"""A run with a prefix cache is the run without one."""

import dataclasses
import shutil

import numpy as np
import pytest

from jxfer import trees
from jxfer.data import loader, screen
from jxfer.data.transforms import AugmentConfig
from jxfer.train import feature_room, feature_store, loop, prefix_choice, program
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.feature_store import CacheConfig
from jxfer.train.selection import evaluation_steps
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from tests.conftest import CLASSES
from tests.runs import lines
from tests.train.conftest import make_course

PROBE, PARTIAL = StrategyConfig("linear_probe"), StrategyConfig("partial", "stem")


def final(config, run):
    with Checkpoints(run / "checkpoints") as checkpoints:
        step = evaluation_steps(config, 36)[-1]
        return checkpoints.restore_variables(step, make_course(config).like)


@pytest.fixture(scope="module")
def runs(prefix_config, tmp_path_factory):
    """Runs a config once; returns (summary, folder)."""
    known = {}

    def run(config):
        if config not in known:
            folder = tmp_path_factory.mktemp("prefix") / "run"
            known[config] = loop.run_config(config, folder, quiet=True), folder
        return known[config]

    return run


@pytest.mark.parametrize(
    ("strategy", "augment"),
    [
        pytest.param(PROBE, AugmentConfig(), id="probe"),
        pytest.param(PROBE, AugmentConfig(flip=True, pad_crop=2, views=2), id="probe of two views"),
        pytest.param(PARTIAL, AugmentConfig(), id="partial", marks=pytest.mark.slow),
        pytest.param(StrategyConfig("lp_ft"), AugmentConfig(), id="lp_ft", marks=pytest.mark.slow),
    ],
)
def test_the_trained_parameters_are_those_of_the_run_without_a_cache(
    strategy, augment, prefix_config, runs
):
    """To 1e-5 of a leaf's largest entry: the compiler fuses the two halves in its own way."""
    with_cache = prefix_config(strategy, augment=augment)
    without = dataclasses.replace(with_cache, cache=CacheConfig("off"))
    first = make_course(with_cache).plans[0]
    splits = screen.load_splits(with_cache.data)
    assert prefix_choice.choose(first, with_cache, splits).output is not None
    (summary, run), (wanted_summary, wanted_run) = runs(with_cache), runs(without)
    found, wanted = (
        trees.flatten(final(config, folder))
        for config, folder in ((with_cache, run), (without, wanted_run))
    )
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(
            found[path], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=path
        )
    for key in ("val_correct", "test_correct", "best_step", "frozen_unchanged", "parameters"):
        assert summary[key] == wanted_summary[key]


def test_memory_and_disk_give_the_same_bits(prefix_config, runs, assert_same_bits):
    (_, memory), (_, disk) = runs(prefix_config()), runs(prefix_config(mode="disk"))
    assert_same_bits(final(prefix_config(), memory), final(prefix_config(mode="disk"), disk))


@pytest.mark.parametrize("mode", ["disk", "shared"])
def test_a_later_run_computes_nothing_on_disk(mode, prefix_config, runs, tmp_path, monkeypatch):
    runs(prefix_config(mode="disk"))

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(feature_store, "_fill", never)
    other = prefix_config(mode=mode, seed=3, optimizer=OptimizerConfig(lr=0.01))
    loop.run_config(other, tmp_path / "run", quiet=True)


def test_shared_stays_in_memory_while_others_fill_the_disk(
    prefix_config, runs, tmp_path, monkeypatch, caplog, assert_same_bits
):
    def full(*_):
        raise feature_room.NoRoom("other processes are filling it")

    monkeypatch.setattr(feature_store, "on_disk", full)
    config = prefix_config(mode="shared")
    loop.run_config(config, tmp_path / "run", quiet=True)
    assert "other processes are filling it; here they are kept in memory" in caplog.text
    _, memory = runs(prefix_config())
    assert_same_bits(final(config, tmp_path / "run"), final(prefix_config(), memory))


@pytest.mark.parametrize(
    "change",
    [
        *("weights", "images", "size", "views", "code", "seed"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("dtype", "depth")),
    ],
)
def test_any_change_of_key_computes_again(
    change, prefix_config, make_entry, runs, tmp_path, monkeypatch, small_config
):
    augment = AugmentConfig(flip=True, views=1) if change == "seed" else AugmentConfig()
    config = prefix_config(mode="disk", epochs=0.4, augment=augment)
    runs(config)
    filled = []
    monkeypatch.setattr(
        feature_store, "_fill", lambda *args: filled.append(args) or _keep_going(*args)
    )
    fields = {}
    if change == "weights":
        weights = tmp_path / "weights"
        shutil.copytree(config.model.weights, weights)
        scale_a_kernel(weights)
        fields["model"] = dataclasses.replace(config.model, weights=str(weights))
    elif change == "images":
        root = tmp_path / "images"
        shutil.copytree(config.data.source.removeprefix("folder:"), root)
        first, second = sorted((root / "train" / CLASSES[0]).iterdir())[:2]
        first.write_bytes(second.read_bytes())
        fields["data"] = dataclasses.replace(config.data, source=f"folder:{root}")
    elif change == "code":
        monkeypatch.setattr(program, "CODE", program.CODE | {"pillow": "0"})
    elif change == "seed":
        fields["seed"] = config.seed + 1
    elif change == "size":
        fields["model"] = dataclasses.replace(config.model, image_size=24)
    elif change == "views":
        fields["augment"] = AugmentConfig(flip=True, views=1)
    elif change == "dtype":
        fields["cache"] = CacheConfig("disk", dtype="bfloat16")
    else:
        fields["strategy"] = PARTIAL
    loop.run_config(dataclasses.replace(config, **fields), tmp_path / "run", quiet=True)
    # The validation images are those of before, unless the rows themselves are others.
    assert len(filled) == (1 if change in ("images", "views", "seed") else 2)


def scale_a_kernel(entry):
    from jxfer.zoo import store

    card, variables = store.load(str(entry))
    variables["params"]["stem"]["conv"]["kernel"] *= 1.01
    store.save(entry, dataclasses.replace(card), variables, overwrite=True)


_keep_going = feature_store._fill


def test_bfloat16_rounds_the_features_and_still_trains(prefix_config, runs):
    summary, _ = runs(prefix_config(dtype="bfloat16"))
    assert summary["frozen_unchanged"] is True


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_kill_changes_no_bit(
    mode, prefix_config, runs, tmp_path, stop_after_save, assert_same_bits
):
    config = prefix_config(PARTIAL, mode, checkpoint_every=1)
    _, undisturbed = runs(config)
    run = tmp_path / "run"
    with stop_after_save(4):
        loop.run_config(config, run, quiet=True)
    loop.run_config(config, run, quiet=True)
    assert_same_bits(final(config, run), final(config, undisturbed))
    assert lines(run) == lines(undisturbed)


def test_no_image_is_decoded_once_the_features_are_there(prefix_config, tmp_path, monkeypatch):
    config = prefix_config(epochs=8.0)
    decoded = []
    decode = loader.transforms.decode
    monkeypatch.setattr(
        loader.transforms, "decode", lambda data, name: decoded.append(name) or decode(data, name)
    )
    splits = screen.load_splits(config.data)
    loop.run_config(config, tmp_path / "run", quiet=True)
    rows = -(-(36) // 16) * 16 + 16  # padded batches of training and validation images
    assert len(decoded) <= rows + len(splits.test)
