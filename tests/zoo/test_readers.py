import hashlib
import io
import os
import pathlib
import pickle
import sys
import tarfile

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from jxfer.errors import UserError
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


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (pathlib.Path.touch, (self.mark,))


def test_pickles_are_never_run(one_line, tmp_path):
    mark = tmp_path / "mark"
    torch.save({"a": Evil(mark)}, tmp_path / "w.pth")
    (tmp_path / "w.th").write_bytes(pickle.dumps(Evil(mark)))
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.array([Evil(mark)], object), allow_pickle=True)
    for name in ("w.pth", "w.th", "npy"):
        with one_line("cannot be read"):
            read_tensors(tmp_path / name)
    assert not mark.exists()


def test_a_pickle_with_code_is_told_in_one_line(one_line, tmp_path):
    """PyTorch's own message has terminal escapes, and says how to run the code."""
    torch.save({"a": Evil(tmp_path / "mark")}, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        read_tensors(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path}/w.pth: cannot be read as .pth, damaged or not plain: holds code or objects, "
        "such as getattr, and only tensors are read; fetch it again, or save its tensors alone"
    )


def test_the_old_tar_format_is_not_unpacked(one_line, tmp_path):
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages", "../evil", "/tmp/evil"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with one_line("w.pth", "cannot be read", "legacy .tar format."):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path.parent / "evil").exists()


def header(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    text = text.encode() if isinstance(text, str) else text
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(dtype: str, shape: str, offsets: str) -> str:
    return f'{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}'


@pytest.mark.parametrize(
    "content",
    [
        header("{}", length=2**63),
        header("{}", length=2**64 - 1),
        header("{}", length=10**9),
        header(b"[" * 100_000),
        header(b"\xff\xfe{}"),
        header('{"a": 1}'),
        header(one("F32", "[4]", "[0, 8]"), bytes(8)),
        header(one("F32", "[2]", "[0, 4000000000]"), bytes(8)),
        header(one("F32", "[2]", "[8, 0]"), bytes(8)),
        header(one("F32", "[-2]", "[0, 8]"), bytes(8)),
        header(one("F32", "[4294967296, 4294967296]", "[0, 8]"), bytes(8)),
        header(one("F32", "[1e99]", "[0, 8]"), bytes(8)),
        header(one("PICKLE", "[2]", "[0, 8]"), bytes(8)),
        header(one("F32", "[1]", "[4, 8]"), bytes(8)),
        header('{"__metadata__": {"x": 1}}'),
    ],
)
def test_absurd_headers_of_safetensors(content, tmp_path, one_line):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with one_line("w.safetensors", "cannot be read"):
        read_metadata(path)
    with one_line("w.safetensors", "cannot be read"):
        read_tensors(path)


def npy(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2**40), }\n", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps(["x"])),
        npy("{'descr': '<f999999999', 'fortran_order': False, 'shape': (1,), }\n", bytes(64)),
        npy("__import__('os').abort()\n"),
        npy("(" * 60_000),
        npy("{" * 5_000),
        b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{}",
        b"PK\x05\x06" + bytes(18),
        b"",
    ],
)
def test_absurd_headers_of_npy(content, tmp_path, one_line):
    """The last but one is an empty zip archive, which `np.load` would open as .npz."""
    (tmp_path / "a.npy").write_bytes(content)
    with one_line("a.npy", "cannot be read"):
        read_tensors(tmp_path)


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


def test_a_pipe_is_no_weight_file(tmp_path, one_line):
    os.mkfifo(tmp_path / "a.npy")
    (tmp_path / "b.npy").symlink_to("/dev/zero")
    for name in ("a.npy", "b.npy"):
        with one_line(name, "no regular file"):
            read_tensors(tmp_path)
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "w.safetensors")
    with one_line("w.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


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
