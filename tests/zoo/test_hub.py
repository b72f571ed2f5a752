"""The Hub's own client against a loopback server that serves real files, and breaks on demand."""

import json

import huggingface_hub
import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
import safetensors.numpy

from jxfer.zoo import hub, imagenet, weights
from tests import torch_reference
from tests.zoo.server import COMMIT, CONFIG, NAME, File, Server, publish


@pytest.fixture(scope="session")
def tensors():
    reference = torch_reference.create("resnet20", 5)
    torch_reference.randomise(reference, seed=0)
    state = reference.state_dict()
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()}


@pytest.fixture(scope="session")
def content(tensors):
    return safetensors.numpy.save(tensors)


@pytest.fixture
def server(hub_server):
    return hub_server


def test_everything_comes_from_the_repository(server, content, tensors):
    file = publish(server, content)
    found = weights.load(NAME)
    card = found.card
    assert (card.name, card.arch, card.licence) == (NAME, "resnet20", "mit")
    assert card.class_names == ("ant", "bee", "cat", "dog", "eel")
    preprocessing = card.preprocessing
    assert (preprocessing.size, preprocessing.size / preprocessing.crop) == (40, 42)  # of 42.55
    assert preprocessing.interpolation == "bicubic"
    assert preprocessing.mean == (0.5, 0.4, 0.3)
    assert preprocessing.std == (0.2, 0.3, 0.4)
    assert card.notes == "timm's tag: made_up; timm evaluates at 48 px with crop 1.0"
    assert card.source == f"https://huggingface.co/{NAME}/tree/{COMMIT}"
    assert card.source_sha256 == file.etag
    assert card.parameters == sum(
        array.size for name, array in tensors.items()
        if "running" not in name and "tracked" not in name
    )  # fmt: skip
    assert all("num_batches_tracked" in name for name in found.report.dropped)
    kernel = found.variables["params"]["head"]["linear"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["linear.weight"].T)


def test_a_second_call_downloads_nothing_and_the_long_name_is_the_same(server, content):
    publish(server, content)
    first = weights.load(NAME).card
    for name in (f"hf:{NAME}", f"{NAME}@main", f"hf:{NAME}@{COMMIT}"):
        assert weights.load(name).card == first
    assert len(server.got("model.safetensors")) == 1
    assert len(server.got("config.json")) == 1


def test_offline_mode_reads_the_cache_and_nothing_else(server, content, monkeypatch, one_line):
    publish(server, content)
    card = weights.load(NAME).card
    asked = len(server.requests)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert weights.load(NAME).card == card
    with one_line("hf:timm/other", "not in the cache", "offline"):
        weights.load("timm/other")
    assert len(server.requests) == asked


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/w", "http://[::"])
def test_a_redirect_to_another_scheme_is_refused(place, server, content, one_line):
    publish(server, content).redirect = place
    with one_line(NAME, "model.safetensors"):
        weights.load(NAME)


def test_what_another_host_sends_must_have_the_hash_that_the_hub_said(server, content, one_line):
    """Large files lie elsewhere, so that redirects are followed; the content decides."""
    forged = safetensors.numpy.save({"linear.weight": np.zeros((5, 64), np.float32)})
    assert len(forged) < len(content)
    other = Server()
    other.files["/w"] = File(forged + bytes(len(content) - len(forged)))
    try:
        publish(server, content).redirect = f"{other.url}/w"
        with one_line(NAME, "damaged", "its hash is"):
            weights.load(NAME)
        assert other.requests
    finally:
        other.close()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_response_that_never_ends_is_cut_off(name, server, content, one_line, monkeypatch):
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
    publish(server, content)
    for path, file in server.files.items():
        file.endless = path.endswith(name)
    with one_line(NAME, name, "more than the", "announced"):
        weights.load(NAME)


def test_a_dropped_connection_is_taken_up_where_it_broke(server, content, tensors, monkeypatch):
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    publish(server, content, drop_after=400_000)
    found = weights.load(NAME)
    np.testing.assert_array_equal(
        found.variables["params"]["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1),
        tensors["conv1.weight"],
    )
    first, second = server.got("model.safetensors")
    assert first is None
    assert int(second.removeprefix("bytes=").rstrip("-")) > 0


def test_damaged_content_is_refused_and_not_kept(server, content, one_line):
    file = publish(server, content, damaged=True)
    with one_line("timm/resnet20.made_up", "model.safetensors is damaged", "try again"):
        weights.load(NAME)
    file.damaged = False
    weights.load(NAME)
    assert len(server.got("model.safetensors")) == 2


def test_a_truncated_file_is_refused_and_not_kept(server, content, one_line):
    file = publish(server, content, truncated=True)
    with one_line("timm/resnet20.made_up", "model.safetensors is damaged", "try again"):
        weights.load(NAME)
    file.truncated = False
    weights.load(NAME)


def test_the_weights_are_those_of_the_configs_commit(server, content):
    publish(server, content)
    weights.load(NAME)
    asked = {path for _, path, _ in server.requests if path.endswith("model.safetensors")}
    assert asked >= {f"/{NAME}/resolve/{COMMIT}/model.safetensors"}
    assert f"/{NAME}/resolve/main/model.safetensors" not in asked


def test_a_connection_that_always_breaks_is_one_line(server, content, one_line, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    file = publish(server, content, drop_after=0, drop_always=True)
    with one_line(NAME, "model.safetensors", "try again"):
        weights.load(NAME)
    file.drop_after, file.drop_always = None, False
    weights.load(NAME)


def test_a_gated_repository(server, content, one_line):
    publish(server, content)
    server.refusals[f"/{NAME}/resolve/main/config.json"] = (403, "GatedRepo")
    with one_line(NAME, "accept terms", "hf auth login"):
        weights.load(NAME)


def test_a_hub_that_is_down_is_only_needed_once(server, content, one_line, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    publish(server, content)
    server.refusals[f"/{NAME}/resolve/main/config.json"] = (500, "Broken")
    with one_line(NAME, "config.json is not in the cache", "cannot be reached"):
        weights.load(NAME)
    server.refusals.clear()
    card = weights.load(NAME).card
    server.refusals[f"/{NAME}/resolve/main/config.json"] = (500, "Broken")
    assert weights.load(NAME).card == card


def test_other_failures_of_the_network_are_one_line(one_line, monkeypatch):
    def fail(*args, **more):
        raise huggingface_hub.errors.HTTPError("the connection\nwas reset")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with one_line("hf:timm/x", "config.json: the connection", "try again"):
        weights.load("timm/x")


def test_a_damaged_config_is_refused(server, content, one_line):
    publish(server, content)
    server.files[f"/{NAME}/resolve/main/config.json"].damaged = True
    with one_line("config.json is damaged"):
        weights.load(NAME)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/nothing", ("hf:timm/nothing", "no such repository")),
        (f"{NAME}@v9", (f"hf:{NAME}@v9", "no revision v9")),
        ("hf:resnet18", ("OWNER/NAME",)),
        ("hf:a/b/c", ("OWNER/NAME",)),
        ("hf:-a-/b..c", ("hf:-a-/b..c",)),
    ],
)
def test_what_is_not_there(name, words, server, content, one_line):
    publish(server, content)
    with one_line(*words):
        weights.load(name)


def test_a_repository_without_safetensors(server, one_line):
    server.add_repository(NAME, config_json=File(json.dumps(CONFIG).encode()))
    with one_line(NAME, "no model.safetensors"):
        weights.load(NAME)


def changed(**fields):
    return CONFIG | fields


def changed_cfg(**fields):
    return CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | fields}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"<html>", ("config.json", "not valid JSON")),
        (b"[]", ("config.json", "not a config")),
        (b'"text"', ("config.json", "not a config")),
        ({"architecture": "resnet20"}, ("pretrained_cfg is missing",)),
        (changed_cfg(input_size=None), ("not a config",)),
        (changed(architecture="resnet20x"), ("unknown architecture 'resnet20x'", "resnet20")),
        (changed(architecture=7), ("architecture must be a name",)),
        (changed(num_classes=6), ("6 classes", "has 5")),
        (changed(label_names=["a", "b"]), ("2 names", "has 5")),
        (changed(global_pool="max"), ("average pooling",)),
        (changed(model_args={"stem_width": 7}), ("no other model arguments",)),
        (changed(label_names="abcde"), ("label_names must be a list",)),
        (changed(label_names={"0": "a", "2": "b"}), ("label_names must", "every index")),
        (changed_cfg(label_offset=1), ("no offset",)),
        (changed_cfg(input_size=[3, "40", "40"]), ("size must be an integer",)),
        (changed_cfg(mean=[0.5]), ("mean must be a list of 3",)),
        (changed_cfg(input_size=[1, 40, 40]), ("3 input channels",)),
        (changed_cfg(input_size=[3, 40, 48]), ("square",)),
        (changed_cfg(crop_mode="squash"), ("centre crop",)),
        (changed_cfg(interpolation="lanczos"), ("interpolation", "lanczos")),
        (changed_cfg(crop_pct=0), ("crop",)),
    ],
)
def test_a_config_that_cannot_be_honoured(config, words, server, content, one_line):
    publish(server, content, config)
    with one_line(NAME, *words):
        weights.load(NAME)


def test_label_names_by_index(server, content):
    names = {str(i): f"class {i}" for i in (4, 2, 0, 1, 3)}
    publish(server, content, changed(label_names=names))
    assert weights.load(NAME).card.class_names == tuple(f"class {i}" for i in range(5))


def test_label_names_that_are_not_distinct_name_nothing(server, content, caplog):
    publish(server, content, changed(label_names=["crane", "crane", "a", "b", "c"]))
    found = weights.load(NAME)
    assert (found.card.class_names, found.head_classes) == ((), 5)
    assert "label_names" in caplog.text


def test_the_classes_of_imagenet_are_its_folders_names(server, content):
    config = changed(num_classes=1000, label_names=None)
    config["pretrained_cfg"] = CONFIG["pretrained_cfg"] | {"tag": "a1_in1k"}
    card, num_classes = hub._read_config(config, "here")
    assert num_classes == 1000
    assert card.class_names == imagenet.class_names()
    assert card.dataset == "ImageNet-1k"
    # Tench, goldfish; toilet tissue.
    assert card.class_names[:2] == ("n01440764", "n01443537")
    assert card.class_names[-1] == "n15075141"


def test_a_head_that_nothing_names_is_dropped(server, content, one_line):
    publish(server, content, changed(label_names=None))
    found = weights.load(NAME)
    assert found.card.class_names == ()
    assert "head" not in found.variables["params"]
    assert {"linear.weight", "linear.bias"} <= set(found.report.dropped)
    assert found.head_classes == 5
    with one_line(NAME, "nothing names the 5 classes", "--class-names"):
        found.check_named()
