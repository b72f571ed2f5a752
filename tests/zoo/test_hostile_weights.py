"""Weight files that mean harm: nothing in them is run, unpacked or allocated."""

import io
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import torch

from jxfer.errors import UserError
from jxfer.zoo.readers import read_metadata, read_tensors


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
