"""A PyTorch state dict into our variables, strictly, and back.

After `readers` and `torch_tables`, which says what each tensor is called; before `store`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jxfer import trees
from jxfer.errors import UserError
from jxfer.models.architectures import Architecture
from jxfer.models.registry import Model
from jxfer.trees import Tree
from jxfer.zoo.report import Report, raise_problems
from jxfer.zoo.torch_tables import VECTOR, Layout, our_path, table, torch_name

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
    names = (name for name, path, _ in table(architecture) if path == "params/head/linear/kernel")
    shape = next((tensors[name].shape for name in names if name in tensors), ())
    return shape[0] if shape else None


def import_torch(tensors: Mapping[str, np.ndarray], model: Model) -> ImportResult:
    """Renames and converts a PyTorch state dict; every tensor must find its place.

    Tensors of stages that `model` does not build, of the head where it has none, and the counters
    `num_batches_tracked` are dropped. A convolution that has a bias and no norm is taken as one
    with BatchNorm folded in: the bias becomes the norm's, which otherwise changes nothing.

    Args:
      tensors: as from `readers.read_tensors`, in torch's names and layouts.
      model: what to fill, with a linear head or none. Shapes are compared before anything is
        allocated.

    Raises:
      UserError: the head is not linear; or tensors are missing, unexpected, given twice, of another
        shape, not floating point or not finite: one line with all of them.
    """
    _check_head(model)
    arch = model.architecture
    beyond = set(arch.stages) - set(model.stages)
    if model.num_classes is None:
        beyond.add("head")
    expected = trees.flatten(model.shapes())
    found: dict[str, tuple[str, Layout]] = {}  # by our path: torch's name
    dropped, problems = [], []
    for name in sorted(tensors):
        if name.rpartition(".")[2] == "num_batches_tracked":
            dropped.append(name)
            continue
        path, layout = our_path(name, arch) or ("", VECTOR)
        if path and path.split("/")[1] in beyond:
            dropped.append(name)
        elif path not in expected:
            problems.append(f"unexpected {name}")
        elif path in found:
            problems.append(f"{found[path][0]} and {name} both stand for {path}")
        else:
            found[path] = name, layout
            problems.extend(_mismatch(name, tensors[name], layout, expected[path].shape))
    folded = _folded_leaves({path: name for path, (name, _) in found.items()}, arch)
    missing = [path for path in expected if path not in found and path not in folded]
    names = [torch_name(path, arch)[0] for path in missing]
    raise_problems(arch.name, [f"missing {name}" for name in sorted(names)] + problems)

    flat = {}
    for path, leaf in expected.items():
        if path in folded:
            flat[path] = np.full(leaf.shape, folded[path], np.float32)
        else:
            name, layout = found[path]
            flat[path] = layout.to_ours(tensors[name], leaf.shape)
    report = Report(loaded=tuple(sorted(flat)), reinitialised=(), dropped=tuple(dropped))
    return ImportResult(trees.unflatten(flat), report, "folded" if folded else "standard")


def export_torch(variables: Tree, model: Model) -> dict[str, np.ndarray]:
    """The way back: a state dict that PyTorch's own network loads with `strict=True`.

    Import, then export, gives every floating-point tensor back bit for bit. A norm that came
    folded is written as the norm that it is, and the counters `num_batches_tracked`, which torch
    sets to zero where they are missing, are left out.

    Args:
      variables: of `model`.
      model: all its stages are written, and its linear head.

    Returns:
      {torchvision's name (timm's where torchvision has no such network): float32, C-contiguous}.

    Raises:
      UserError: the head is not linear, which those networks do not have.
    """
    _check_head(model)
    tensors = {}
    for path, leaf in trees.flatten(variables).items():
        name, layout = torch_name(path, model.architecture)
        tensors[name] = layout.to_torch(leaf)
    return tensors


def _check_head(model: Model) -> None:
    if model.num_classes is not None and model.head.kind != "linear":
        raise UserError(
            f"{model.architecture.name} has one linear layer as its head in PyTorch; this head is "
            f"of kind {model.head.kind}: write it with jxfer zoo export --format stablehlo"
        )


def _mismatch(name: str, tensor: np.ndarray, layout: Layout, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with a tensor that shall become a leaf of `shape`: nothing, or one problem."""
    wanted = layout.torch_shape(shape)
    if tensor.shape != wanted:
        return [f"{name} has shape {tensor.shape}, expected {wanted}"]
    if not np.issubdtype(tensor.dtype, np.floating):
        return [f"{name} has type {tensor.dtype}, expected floating point"]
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity
        finite = np.isfinite(tensor.astype(np.float32)).all()
    return [] if finite else [f"{name} holds NaN, infinity, or a value too large for float32"]


def _folded_leaves(found: Mapping[str, str], architecture: Architecture) -> dict[str, np.float32]:
    """Path -> constant, for the leaves beside each norm bias that came from a convolution."""
    leaves: dict[str, np.float32] = {}
    for path, name in found.items():
        norm, _, leaf = path.removeprefix("params/").rpartition("/")
        is_norm = "norm" in norm.rpartition("/")[2]
        if leaf != "bias" or not is_norm or name == torch_name(path, architecture)[0]:
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
