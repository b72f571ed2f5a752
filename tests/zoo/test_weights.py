"""What a name of weights stands for, and a run that starts from each kind."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from jxfer import trees
from jxfer.data.sources import DataConfig
from jxfer.models import registry
from jxfer.train import loop
from jxfer.train.config import TrainConfig
from jxfer.zoo import hub, store, torch_names, weights
from jxfer.zoo.card import Card
from jxfer.zoo.pretrained import ModelConfig, create_model
from jxfer.zoo.published import CARD_KEY, Published


@pytest.fixture
def file(tmp_path, model, variables):
    """A plain safetensors file in the names of PyTorch."""
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(torch_names.export_torch(variables, model), path)
    return path


def test_a_plain_file_needs_its_architecture_and_gives_a_backbone(file, variables, one_line):
    with one_line("net.safetensors", "which architecture"):
        weights.load(str(file))
    found = weights.load(str(file), arch="resnet20")
    assert (found.card.name, found.card.class_names, found.head_classes) == ("net", (), 3)
    assert found.report.dropped == ("linear.bias", "linear.weight")
    backbone = {k: v for k, v in trees.flatten(variables).items() if "head" not in k}
    loaded = trees.flatten(found.variables)
    assert loaded.keys() == backbone.keys()
    for path, leaf in backbone.items():
        np.testing.assert_array_equal(loaded[path], leaf)


def test_a_local_path_wins_over_a_name_of_the_hub(
    file, card, variables, tmp_path, monkeypatch, no_zoos
):
    def fetch(name):
        raise AssertionError(f"the Hub was asked for {name}")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    store.save(tmp_path / "timm" / "small", card, variables)
    assert weights.load("timm/small").card.name == "small"
    with pytest.raises(AssertionError, match="timm/other"):
        weights.load("timm/other")


def test_a_folder_with_a_card_is_an_entry_whatever_else_lies_there(card, variables, tmp_path):
    store.save(tmp_path / "run" / "model", card, variables)
    np.save(tmp_path / "run" / "features.npy", np.zeros(3))
    assert weights.load(str(tmp_path / "run")).card.name == "small"


def test_a_path_that_holds_no_weights(tmp_path, one_line):
    with one_line(str(tmp_path), "card.json", "model/card.json", ".npy"):
        weights.load(str(tmp_path))
    (tmp_path / "net.bin").touch()
    with one_line("net.bin", "unknown kind of weight file"):
        weights.load(str(tmp_path / "net.bin"))


def test_a_head_that_nothing_names_cannot_be_kept(file, one_line):
    config = ModelConfig(weights=str(file), arch="resnet20", head="keep")
    with one_line(f"{file}: nothing names the 3 classes", "jxfer zoo import", "--class-names"):
        create_model(config, ("a", "b", "c"))


def test_an_entry_and_a_run_go_by_path_or_name(card, variables, tmp_path, no_zoos, one_line):
    saved = store.save(tmp_path / "zoo" / "small", card, variables)
    store.save(tmp_path / "run" / "model", card, variables)
    for name in ("small", str(tmp_path / "zoo" / "small"), str(tmp_path / "run")):
        found = weights.load(name, zoo=str(tmp_path / "zoo"))
        assert found.card.tensors_sha256 == saved.tensors_sha256
        assert not found.report.dropped
    with one_line("'smal'", "small"):
        weights.load("smal", zoo=str(tmp_path / "zoo"))


def with_card(file, card, tensors=None):
    tensors = tensors or safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(
        tensors, file, {CARD_KEY: card if isinstance(card, str) else card.to_json()}
    )


def test_a_file_with_a_card_knows_itself(file, card, variables, tmp_path, one_line):
    saved = store.save(tmp_path / "small", card, variables)
    with_card(file, saved)
    found = weights.load(str(file))
    assert dataclasses.replace(found.card, files_sha256=saved.files_sha256) == saved
    with one_line("resnet20 by its own card", "resnet32"):
        weights.load(str(file), arch="resnet32")


def test_a_wrong_card_in_a_file_is_refused(file, card, variables, tmp_path, one_line):
    saved = store.save(tmp_path / "small", card, variables)
    for wrong, words in (
        ("{", ("not valid JSON",)),
        (saved.to_json().replace('"arch"', '"arhc"'), ("field arch is missing",)),
        (dataclasses.replace(saved, arch="resnet32"), ("missing layer1.3",)),
        (dataclasses.replace(saved, class_names=("a", "b")), ("2 names", "has 3")),
        (dataclasses.replace(saved, through="stage9"), ("stage9",)),
    ):
        with_card(file, wrong)
        with one_line(*words):
            weights.load(str(file))


def test_changed_tensors_under_a_card_are_refused(file, card, variables, tmp_path, one_line):
    saved = store.save(tmp_path / "small", card, variables)
    tensors = safetensors.numpy.load_file(file)
    tensors["conv1.weight"].flat[0] += 1
    with_card(file, saved, tensors)
    with one_line("net.safetensors", "tensors_sha256"):
        weights.load(str(file))


@pytest.fixture
def from_the_hub(file, model, monkeypatch):
    """timm/small is the file, with the names of its classes."""
    card = Card("timm/small", "resnet20", ("a", "b", "c"), model.architecture.preprocessing)
    monkeypatch.setattr(hub, "fetch", lambda name: Published(file, card, num_classes=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_config", "dropped"),
    [
        (
            ModelConfig(weights="timm/small"),
            ["params/head/linear/bias", "params/head/linear/kernel"],
        ),
        (ModelConfig(weights="FILE", arch="resnet20"), ["linear.bias", "linear.weight"]),
    ],
)
def test_a_run_keeps_the_report_and_the_lineage(
    model_config, dropped, file, from_the_hub, images, tmp_path, no_zoos
):
    if model_config.weights == "FILE":
        model_config = dataclasses.replace(model_config, weights=str(file))
    config = TrainConfig(
        data=DataConfig(source=f"folder:{images}"), model=model_config, epochs=1, batch_size=16
    )
    loop.run_config(config, tmp_path / "run", quiet=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dropped"] == dropped
    assert summary["reinitialised"] == ["params/head/linear/bias", "params/head/linear/kernel"]
    assert len(summary["loaded"]) == 95
    card = store.read_card(tmp_path / "run" / "model")
    (parent,) = card.parents
    assert parent.name == ("timm/small" if "timm" in model_config.weights else "net")
    assert parent.source_sha256 == weights.load(str(file), arch="resnet20").card.source_sha256
    assert parent.tensors_sha256


def test_a_source_that_fails_leaves_no_run_behind(images, tmp_path, no_zoos, one_line):
    config = TrainConfig(
        data=DataConfig(source=f"folder:{images}"),
        model=ModelConfig(weights="torchvision:resnet17"),
        epochs=1,
    )
    with one_line("torchvision:resnet17"):
        loop.run_config(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_stages_of_a_plain_file_are_reused_once_it_is_an_entry(file, one_line):
    config = ModelConfig(weights=str(file), arch="resnet32", reuse=("stem",))
    with one_line("net.safetensors", "which architecture", "zoo import"):
        create_model(config, ("a", "b"))


def test_classes_that_the_publisher_counts_otherwise_are_refused(file, model, one_line):
    card = Card("timm/small", "resnet20", (), model.architecture.preprocessing)
    with one_line("timm/small", "4 classes", "has 3"):
        weights.convert(Published(file, card, num_classes=4))


def test_options_of_an_import_override_the_card(file, card, variables, tmp_path):
    with_card(file, store.save(tmp_path / "small", card, variables))
    published = weights.find(str(file))
    assert published is not None
    named = weights.convert(published, class_names=("x", "y", "z"))
    assert named.card.class_names == ("x", "y", "z")
    cut = weights.convert(published, through="stage1")
    assert (cut.card.through, cut.card.class_names) == ("stage1", ())
    assert cut.card.tensors_sha256 == trees.sha256(cut.variables)
    rows = registry.create("resnet20", None, through="stage1").shapes()
    assert trees.flatten(cut.variables).keys() == trees.flatten(rows).keys()


def test_an_architecture_that_contradicts_the_publisher_is_refused(from_the_hub, one_line):
    with one_line("timm/small is a resnet20, not a resnet32"):
        weights.load("timm/small", arch="resnet32")


def test_a_publishers_count_of_no_classes_is_a_file_without_a_head(file, model, tmp_path):
    tensors = safetensors.numpy.load_file(file)
    bare = {name: tensor for name, tensor in tensors.items() if "linear" not in name}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    card = Card("timm/bare", "resnet20", (), model.architecture.preprocessing)
    found = weights.convert(Published(tmp_path / "bare.safetensors", card, num_classes=0))
    assert found.head_classes is None


def test_values_beyond_float32_are_refused(file, one_line):
    tensors = {k: v.astype(np.float64) for k, v in safetensors.numpy.load_file(file).items()}
    tensors["conv1.weight"].flat[0] = 1e300
    safetensors.numpy.save_file(tensors, file)
    with one_line("conv1.weight", "too large for float32"):
        weights.load(str(file), arch="resnet20")
