"""Weight files -> NumPy arrays under their own names. Formats only: names are `torch_names`' job.

Before `torch_names` in the flow. No reader runs code from the file: .npy without pickle, .pth and
.th through `torch.load(weights_only=True)`.
"""

import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from jxfer.errors import UserError

Tensors = dict[str, np.ndarray]


def is_weights(path: Path) -> bool:
    """Whether a path is there and looks like what `read_tensors` takes."""
    if path.is_dir():
        return next(path.glob("*.npy"), None) is not None
    return path.is_file() and path.suffix in _READERS


def check_kind(path: Path) -> None:
    """Says what is wrong with a path for which `is_weights` is false.

    Raises:
      UserError: it is missing, a folder without .npy files, or a file of an unknown kind.
    """
    if is_weights(path):
        return
    if path.is_dir():
        raise UserError(f"{path}: the folder holds no .npy files; name one that does, or a file")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    raise UserError(
        f"{path}: unknown kind of weight file; give {', '.join(_READERS)} or a folder of .npy files"
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The free text in the header of a safetensors file; nothing of other files.

    Raises:
      UserError: the file is corrupt.
    """
    if path.suffix != ".safetensors":
        return {}
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def read_tensors(path: str | Path) -> tuple[Tensors, str]:
    """Reads every tensor of a file or folder.

    Args:
      path: a .safetensors file; a .pth, .pt or .th file that holds a state dict, by itself or
        under the key `state_dict` or `model` (needs the extra `torch`); or a folder of .npy files,
        each named after its tensor.

    Returns:
      ({name: array}, sha256 hex digest of the source). A prefix `module.` that all names share,
      which torch's DataParallel leaves, is removed. The digest of a folder covers the names and
      bytes of its .npy files in name order.

    Raises:
      UserError: the path is missing, of an unknown kind, empty, corrupt, holds something other
        than tensors, or needs torch where it is not installed.
    """
    path = Path(path)
    check_kind(path)
    if path.is_dir():
        tensors, digest = _read_npy_folder(path)
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tensors = _READERS[path.suffix](path)
    if not tensors:
        raise UserError(f"{path}: holds no tensors; save the state dict of a network")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    return tensors, digest


def _read_npy_folder(folder: Path) -> tuple[Tensors, str]:
    tensors: Tensors = {}
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.npy"), key=lambda file: file.name):
        digest.update(os.fsencode(file.name) + b"\0")
        if not file.is_file():  # a pipe never ends
            raise UserError(f"{file}: no regular file; remove it, or put the tensor there")
        try:
            digest.update(file.read_bytes())
            # Mapped first: a header may claim any shape, and reading would allocate it.
            tensors[file.stem] = np.array(np.lib.format.open_memmap(file, mode="r"))
        except Exception as error:  # NumPy raises many types for the ways a header can be bad
            raise _unreadable(file, error) from None
    return tensors, digest.hexdigest()


def _read_safetensors(path: Path) -> Tensors:
    import safetensors
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, KeyError, TypeError, OSError) as error:
        # KeyError and TypeError: a type that NumPy does not have.
        raise _unreadable(path, error) from None
    # bfloat16 is none of NumPy's own; float32 holds it exactly.
    return {
        name: tensor.astype(np.float32) if tensor.dtype.name == "bfloat16" else tensor
        for name, tensor in tensors.items()
    }


def _read_torch(path: Path) -> Tensors:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: reading {path.suffix} files needs torch: pip install 'jxfer[torch]'"
        ) from None
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for the ways a pickle can be bad
        # Its own words advise to run the code.
        told = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if told:
            why = f"holds code or objects, such as {told[1]}, and only tensors are read"
        elif isinstance(error, pickle.UnpicklingError):
            why = "no pickle of tensors alone"
        else:
            why = str(error).partition(" In PyTorch 2.6")[0]
        raise _unreadable(path, ValueError(why)) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: holds a {type(loaded).__name__}, not a state dict; save net.state_dict()"
        )
    tensors: Tensors = {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{path}: {name} is a {type(tensor).__name__}, not a tensor; save "
                "net.state_dict() alone"
            )
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type; float32 holds it exactly
            tensor = tensor.float()
        try:
            tensors[str(name)] = tensor.numpy()
        except (TypeError, RuntimeError):  # sparse, quantised, or of a type that NumPy lacks
            raise UserError(
                f"{path}: {name} is a {tensor.layout} {tensor.dtype} tensor; save it "
                "dense, as float32"
            ) from None
    return tensors


def _unreadable(path: Path, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0][:120] if lines else type(error).__name__
    return UserError(
        f"{path}: cannot be read as {path.suffix}, damaged or not plain: {reason}; "
        "fetch it again, or save its tensors alone"
    )


_READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".th": _read_torch,
}
