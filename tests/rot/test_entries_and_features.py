"""Each file of a zoo entry or of features, damaged in each way: harmless, or told in one line."""

import re
import shutil

import pytest

from jxfer.commands.main import main
from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.probe import feature_writer
from jxfer.zoo import store
from jxfer.zoo.card import Card
from tests.conftest import CLASSES
from tests.rot import faults
from tests.rot.conftest import left

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "small"
    model = registry.create("resnet20", len(CLASSES), through="stage1")
    store.save(folder, Card("small", "resnet20", CLASSES, CIFAR, through="stage1"), model.init(0))
    return folder


def of_entry(name):
    return r"/tensors: (damaged|missing)" if name.startswith("tensors") else r"card\.json|'small'"


@pytest.mark.parametrize("command", ["evaluate", "zoo show", pytest.param("train", marks=slow)])
def test_a_zoo_entry(command, entry, images, scratch, tmp_path, call, no_zoos):
    zoo, data = ("--zoo", str(entry.parent), "--json"), ("--data.source", f"folder:{images}")
    if command == "train":
        recipe = ("--strategy.name", "linear_probe", "--epochs", "0.4", "--batch-size", "16")
        args = ("--model.weights", str(entry), *data, *recipe)

        def read():
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            result, lines = call("train", "--run", str(run), *args, "--json")
            assert result is not None or not run.exists()
            return (None if result is None else left(run, last=1)), lines
    else:
        args = (*command.split(), "small", *zoo, *(data if command == "evaluate" else ()))

        def read():
            return call(*args)

    faults.judge(entry, scratch, read, read()[0], of_entry).check()


@pytest.fixture(scope="module")
def features(entry, images, tmp_path_factory):
    """Features of the training and of the validation images, by split."""
    root = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        assert main(features_of(entry, images, root / split, split)) == 0
    return root


def features_of(entry, images, out, split):
    data = ("--data.source", f"folder:{images}", "--split", split, "--batch-size", "16")
    return ["features", str(entry), "--out", str(out), *data]


def test_a_feature_store(features, scratch, call):
    folders = [str(features / split) for split in ("train", "val")]
    args = ("probe", "--features", *folders, "--probe.kind", "knn", "--json")
    wanted, _ = call(*args)

    def names(name):
        """A folder without its manifest holds no features."""
        return rf"{name}\b|{name.split('/')[0]} holds no features|{name} is no folder"

    faults.judge(features, scratch, lambda: call(*args), wanted, names).check()


@slow
def test_a_feature_store_that_is_not_complete(features, entry, images, tmp_path, scratch, call):
    """What a kill left is taken up or computed again: the same bytes in the end."""
    out = tmp_path / "out"
    args = [*features_of(entry, images, out, "train"), "--json"]
    append = feature_writer._Parts.append

    def stop(parts, block):
        append(parts, block)
        if parts.rows == 32:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_writer._Parts, "append", stop)
        assert main(args) == 130

    def files(folder):
        return {path.name: path.read_bytes() for path in folder.glob("*.npy")}

    def resume():
        result, lines = call(*args)
        return (None if result is None else files(out)), lines

    faults.judge(out, scratch, resume, files(features / "train"), re.escape).check()


@slow
def test_the_cache_of_a_frozen_prefix(entry, images, tmp_path, scratch, call, monkeypatch):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path / "cache"))
    run, data = tmp_path / "run", ("--data.source", f"folder:{images}", "--batch-size", "16")
    recipe = ("--strategy.name", "linear_probe", "--epochs", "1", "--cache.mode", "shared")
    recipe = (*recipe, "--epochs", "2", "--model.weights", str(entry), "--json")

    def train():
        shutil.rmtree(run, ignore_errors=True)
        result, lines = call("train", "--run", str(run), *data, *recipe)
        return (None if result is None else left(run, last=5)), lines

    wanted, _ = train()
    cache = tmp_path / "cache" / "features"
    assert len(list(cache.rglob("features.bin"))) == 2
    faults.judge(cache, scratch, train, wanted, re.escape).check()
