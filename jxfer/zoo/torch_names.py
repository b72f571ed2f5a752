"""PyTorch names -> ours, one table per family, and the strict import of a weight file.

After `readers`, before `store`. A table row is (torch name, our path, axes): `{s}`, `{b}` and `{c}`
stand for numbers, and `axes` is the transpose that turns torch's layout into ours. Exactly one row
matches a tensor. Torch counts its layers and blocks as we do: `layer3.1` is `stage3/block1`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jxfer import trees
from jxfer.models.registry import Architecture, Model
from jxfer.trees import Tree
from jxfer.zoo.report import Report, raise_problems

_CONV = (2, 3, 1, 0)  # [out, in, kh, kw] -> [kh, kw, in, out]
_DENSE = (1, 0)  # [out, in] -> [in, out]
_VECTOR = (0,)

Row = tuple[str, str, tuple[int, ...]]


def _conv_and_norm(conv: str, norm: str, our_conv: str, our_norm: str) -> tuple[Row, ...]:
    return (
        (f"{conv}.weight", f"params/{our_conv}/kernel", _CONV),
        (f"{norm}.weight", f"params/{our_norm}/scale", _VECTOR),
        (f"{norm}.bias", f"params/{our_norm}/bias", _VECTOR),
        (f"{norm}.running_mean", f"batch_stats/{our_norm}/mean", _VECTOR),
        (f"{norm}.running_var", f"batch_stats/{our_norm}/var", _VECTOR),
        (f"{conv}.bias", f"params/{our_norm}/bias", _VECTOR),  # BatchNorm folded into it
    )


def _table(shortcut: str, head: str) -> tuple[Row, ...]:
    layer, block = "layer{s}.{b}", "stage{s}/block{b}"
    return (
        *_conv_and_norm("conv1", "bn1", "stem/conv", "stem/norm"),
        *_conv_and_norm(
            f"{layer}.conv{{c}}", f"{layer}.bn{{c}}", f"{block}/conv{{c}}", f"{block}/norm{{c}}"
        ),
        *_conv_and_norm(
            f"{layer}.{shortcut}.0",
            f"{layer}.{shortcut}.1",
            f"{block}/downsample/conv",
            f"{block}/downsample/norm",
        ),
        (f"{head}.weight", "params/head/linear/kernel", _DENSE),
        (f"{head}.bias", "params/head/linear/bias", _VECTOR),
    )


TABLES: dict[str, tuple[Row, ...]] = {
    "resnet": _table(shortcut="downsample", head="fc"),  # torchvision
    "cifar_resnet": _table(shortcut="shortcut", head="linear"),  # the usual CIFAR-10 code
}

# A folded norm adds a bias and nothing else. With eps = 1e-5 the sum var + eps is exactly 1 in
# float32, so 1 / sqrt(var + eps) is exactly 1 and the layer gives back its input plus the bias.
_FOLDED_VAR = np.float32(1 - 1e-5)


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """Variables for `Model.apply`, float32, and what became of the file's tensors."""

    variables: Tree
    report: Report
    """`dropped` holds torch names; nothing is re-initialised"""
    batchnorm: Literal["standard", "folded"]
    """"folded" if at least one norm came as a convolution's bias"""


def class_count(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> int | None:
    """Number of classes of the file's head, or None if it has none."""
    name = _torch_name("params/head/linear/kernel", architecture.family)
    return int(tensors[name].shape[0]) if name in tensors else None


def import_torch(tensors: Mapping[str, np.ndarray], model: Model) -> ImportResult:
    """Renames and transposes a PyTorch state dict; every tensor must find its place.

    Tensors of stages that `model` does not build, of the head where it has none, and the counters
    `num_batches_tracked` are dropped. A convolution that has a bias and no norm is taken as one
    with BatchNorm folded in: the bias becomes the norm's, which otherwise changes nothing.

    Args:
      tensors: as from `readers.read_tensors`, in torch's names and layouts.
      model: what to fill. Shapes are compared before anything is allocated.

    Raises:
      UserError: tensors are missing, unexpected, given twice, of another shape, not floating
        point or not finite. One line with all of them.
    """
    arch = model.architecture
    beyond = set(arch.stages) - set(model.stages)
    if model.num_classes is None:
        beyond.add("head")
    expected = trees.flatten(model.shapes())
    found: dict[str, tuple[str, tuple[int, ...]]] = {}  # our path -> (torch name, axes)
    dropped, problems = [], []
    for name in sorted(tensors):
        if name.rpartition(".")[2] == "num_batches_tracked":
            dropped.append(name)
            continue
        path, axes = _our_path(name, arch.family) or ("", ())
        if path and path.split("/")[1] in beyond:
            dropped.append(name)
        elif path not in expected:
            problems.append(f"unexpected {name}")
        elif path in found:
            problems.append(f"{found[path][0]} and {name} both stand for {path}")
        else:
            found[path] = name, axes
            problems.extend(_mismatch(name, tensors[name], axes, expected[path].shape))
    folded = _folded_leaves({path: name for path, (name, _) in found.items()}, arch.family)
    missing = [path for path in expected if path not in found and path not in folded]
    names = [_torch_name(path, arch.family) for path in missing]
    raise_problems(arch.name, [f"missing {name}" for name in sorted(names)] + problems)

    flat = {}
    for path, leaf in expected.items():
        if path in folded:
            flat[path] = np.full(leaf.shape, folded[path], np.float32)
        else:
            name, axes = found[path]
            flat[path] = np.ascontiguousarray(tensors[name].transpose(axes), np.float32)
    report = Report(loaded=tuple(sorted(flat)), reinitialised=(), dropped=tuple(dropped))
    return ImportResult(trees.unflatten(flat), report, "folded" if folded else "standard")


def _mismatch(
    name: str, tensor: np.ndarray, axes: tuple[int, ...], shape: tuple[int, ...]
) -> list[str]:
    """What is wrong with a tensor that shall get `shape` by `axes`: nothing, or one problem."""
    wanted = tuple(shape[axes.index(i)] for i in range(len(axes)))  # in torch's layout
    if tensor.shape != wanted:
        return [f"{name} has shape {tensor.shape}, expected {wanted}"]
    if not np.issubdtype(tensor.dtype, np.floating):
        return [f"{name} has type {tensor.dtype}, expected floating point"]
    return [] if np.isfinite(tensor).all() else [f"{name} holds NaN or infinity"]


def _folded_leaves(found: Mapping[str, str], family: str) -> dict[str, np.float32]:
    """Path -> constant, for the leaves beside each norm bias that came from a convolution."""
    leaves: dict[str, np.float32] = {}
    for path, name in found.items():
        norm, _, leaf = path.removeprefix("params/").rpartition("/")
        if leaf != "bias" or name == _torch_name(path, family):
            continue
        constants = {
            f"params/{norm}/scale": np.float32(1),
            f"batch_stats/{norm}/mean": np.float32(0),
            f"batch_stats/{norm}/var": _FOLDED_VAR,
        }
        # A norm with any tensor of its own is not folded: what it lacks is reported as missing.
        if not constants.keys() & found.keys():
            leaves |= constants
    return leaves


def _our_path(name: str, family: str) -> tuple[str, tuple[int, ...]] | None:
    """Our path and the axes for a torch name; None if no row matches.

    Raises:
      ValueError: two rows match; the table is wrong.
    """
    matches = [
        (ours.format_map(match.groupdict()), axes)
        for torch, ours, axes in TABLES[family]
        if (match := re.fullmatch(_pattern(torch), name))
    ]
    if len(matches) > 1:
        raise ValueError(f"{len(matches)} rows of the {family} table match {name}")
    return matches[0] if matches else None


def _torch_name(path: str, family: str) -> str:
    """The torch name of one of our paths: the first row wins, so a norm's own bias."""
    for torch, ours, _ in TABLES[family]:
        if match := re.fullmatch(_pattern(ours), path):
            return torch.format_map(match.groupdict())
    raise ValueError(f"the {family} table has no torch name for {path}")


def _pattern(template: str) -> str:
    """A regular expression in which each `{x}` is a group x of digits."""
    return re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template))
