"""Every format of weights gives the same arrays, or one line that says why not."""

import hashlib
import pathlib
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from jxfer.zoo.readers import check_kind, is_weights, read_metadata, read_tensors

TENSORS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn1.bias": np.array([1.5, -2], np.float32),
}


def as_torch(prefix=""):
    return {prefix + name: torch.from_numpy(array.copy()) for name, array in TENSORS.items()}


def write(path: pathlib.Path, kind: str) -> pathlib.Path:
    if kind == "npy":
        path.mkdir()
        for name, array in TENSORS.items():
            np.save(path / f"{name}.npy", array)
        return path
    path = path.with_suffix(".safetensors" if kind == "safetensors" else ".pth")
    if kind == "safetensors":
        safetensors.numpy.save_file(TENSORS, path)
    elif kind == "pth":
        torch.save(as_torch(), path)
    else:
        torch.save({kind: as_torch("module."), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors", "pth", "state_dict", "model"])
def test_every_format_gives_the_same_arrays(tmp_path, kind):
    path = write(tmp_path / "weights", kind)
    tensors, digest = read_tensors(path)
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype
    if path.is_file():
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_digest_of_a_folder_covers_names_and_bytes(tmp_path):
    folder = write(tmp_path / "weights", "npy")
    first = read_tensors(folder)[1]
    assert read_tensors(write(tmp_path / "again", "npy"))[1] == first
    (folder / "LICENSE").write_text("not a tensor")
    assert read_tensors(folder)[1] == first
    (folder / "bn1.bias.npy").rename(folder / "bn2.bias.npy")
    assert read_tensors(folder)[1] != first


def test_a_prefix_that_not_all_share_stays(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = {"module.a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(arrays, path)
    assert set(read_tensors(path)[0]) == {"module.a", "b"}


def test_bfloat16_widens_without_loss(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.tensor([1.5, 3.0e38], dtype=torch.bfloat16)}, path)
    array = read_tensors(path)[0]["a"]
    assert array.dtype == np.float32
    assert array[0] == 1.5


def test_metadata_is_the_free_text_of_a_safetensors_header(tmp_path, one_line):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(TENSORS, path, {"jxfer_card": "{}", "format": "pt"})
    assert read_metadata(path) == {"jxfer_card": "{}", "format": "pt"}
    assert read_metadata(write(tmp_path / "plain", "safetensors")) == {}
    assert read_metadata(write(tmp_path / "pickled", "pth")) == {}
    assert read_metadata(write(tmp_path / "folder", "npy")) == {}
    path.write_bytes(path.read_bytes()[:20])
    with one_line("w.safetensors", "damaged"):
        read_metadata(path)


def test_the_kind_is_told_without_reading(tmp_path, one_line):
    for kind in ("npy", "safetensors", "pth"):
        path = write(tmp_path / kind, kind)
        assert is_weights(path)
        check_kind(path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.bin").touch()
    for name, words in (
        ("empty", ("no .npy files",)),
        ("w.bin", ("unknown kind", ".safetensors")),
        ("gone", ("no such file", "check the path")),
    ):
        assert not is_weights(tmp_path / name)
        with one_line(name, *words):
            check_kind(tmp_path / name)


def test_missing_path(one_line, tmp_path):
    with one_line("w.pth", "no such file"):
        read_tensors(tmp_path / "w.pth")


def test_unknown_suffix(one_line, tmp_path):
    (tmp_path / "w.onnx").touch()
    with one_line("w.onnx", ".safetensors"):
        read_tensors(tmp_path / "w.onnx")


def test_empty_folder(one_line, tmp_path):
    with one_line(str(tmp_path), "no .npy files"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".th"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02garbage"])
def test_corrupt_file(one_line, tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with one_line(path.name, "cannot be read"):
        read_tensors(path)


def test_truncated_files(one_line, tmp_path):
    for kind in ("safetensors", "pth"):
        path = write(tmp_path / kind, kind)
        path.write_bytes(path.read_bytes()[:-20])
        with one_line(path.name, "cannot be read"):
            read_tensors(path)
    folder = write(tmp_path / "npy", "npy")
    array = folder / "conv1.weight.npy"
    array.write_bytes(array.read_bytes()[:-20])
    with one_line("conv1.weight.npy", "cannot be read"):
        read_tensors(folder)


def test_arrays_of_every_layout_come_back(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(2.5),
        "big": np.arange(3, dtype=">f8"),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    read = read_tensors(tmp_path)[0]
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert type(read[name]) is np.ndarray
        np.testing.assert_array_equal(read[name], array)


def test_something_else_than_tensors(one_line, tmp_path):
    path = tmp_path / "w.pth"
    for value, words in (
        ([1, 2], ("holds a list", "state dict")),
        ({"epoch": 3}, ("epoch is a int", "not a tensor", "state_dict() alone")),
        ({}, ("holds no tensors",)),
    ):
        torch.save(value, path)
        with one_line("w.pth", *words):
            read_tensors(path)


def test_without_torch_the_extra_is_named(one_line, tmp_path, monkeypatch):
    path = write(tmp_path / "w", "pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with one_line("w.pth", "pip install 'jxfer[torch]'"):
        read_tensors(path)


@pytest.mark.realdata
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_digest_of_the_real_networks(test_data, depth):
    (path,) = (test_data / "weights" / "cifar10-resnets").glob(f"resnet{depth}-*.th")
    tensors, digest = read_tensors(path)
    assert digest.startswith(path.stem.split("-")[1])
    assert "conv1.weight" in tensors


def test_bfloat16_widens_from_safetensors_too(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file({"a": torch.tensor([1.5, 3.0e38], dtype=torch.bfloat16)}, path)
    tensors, _ = read_tensors(path)
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], torch.tensor([1.5, 3.0e38]).bfloat16().float())


def test_tensors_that_numpy_lacks_are_named(tmp_path, one_line):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "net.pt")
    with one_line("net.pt", "a is a torch.sparse_coo", "save it dense"):
        read_tensors(tmp_path / "net.pt")
