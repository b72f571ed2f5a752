"""PyTorch names <-> our paths: one table an architecture.

After `report`, before `torch_names`, which imports and exports by it. A row is (torch name, our
path, layout): `{s}`, `{b}` and `{c}` stand for numbers, and the layout turns torch's tensor into
ours and back. Exactly one row matches a tensor. Torch counts its layers and blocks as we do:
`layer3.1` is `stage3/block1`. Names of torchvision and of timm stand in one table; the first row of
a path has torchvision's, or timm's where torchvision has no such network.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from jxfer.models.alexnet import AlexNetConfig
from jxfer.models.architectures import Architecture
from jxfer.models.resnet import ResNetConfig
from jxfer.models.vgg import VGGConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """How torch stores a tensor of ours: a permutation of the axes, and perhaps a merge of them."""

    axes: tuple[int, ...]
    """Our axes in torch's order: axis i of ours is axis `axes[i]` of torch's."""
    flat: bool = False
    """Torch merges all axes but the first, as a Linear over a flattened map [C, H, W] does."""

    def torch_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of torch's tensor for a leaf of ours."""
        shape = self._permuted(ours)
        return (shape[0], math.prod(shape[1:])) if self.flat else shape

    def to_ours(self, tensor: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        """Torch's tensor as our leaf of shape `ours`: float32, C-contiguous."""
        tensor = tensor.reshape(self._permuted(ours)).transpose(self.axes)
        return np.ascontiguousarray(tensor, np.float32)

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """Inverse of `to_ours`."""
        tensor = np.asarray(leaf).transpose(np.argsort(self.axes))
        return np.ascontiguousarray(tensor.reshape(self.torch_shape(leaf.shape)), np.float32)

    def _permuted(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(ours[self.axes.index(i)] for i in range(len(self.axes)))


_CONV = Layout((2, 3, 1, 0))  # [out, in, kh, kw] -> [kh, kw, in, out]
_FLAT = Layout((2, 3, 1, 0), flat=True)  # [out, in * kh * kw] -> [kh, kw, in, out]
_DENSE = Layout((1, 0))  # [out, in] -> [in, out]
VECTOR = Layout((0,))

Row = tuple[str, str, Layout]


def _conv(torch: str, ours: str) -> tuple[Row, ...]:
    """A convolution with a bias of its own."""
    return (
        (f"{torch}.weight", f"params/{ours}/kernel", _CONV),
        (f"{torch}.bias", f"params/{ours}/bias", VECTOR),
    )


def _fully_connected(torch: str, ours: str, timm: str | None = None) -> tuple[Row, ...]:
    """fc6 or fc7: a Linear over the flattened map in torchvision, a convolution in timm."""
    flat = (
        (f"{torch}.weight", f"params/{ours}/kernel", _FLAT),
        (f"{torch}.bias", f"params/{ours}/bias", VECTOR),
    )
    return (*flat, *(_conv(timm, ours) if timm else ()))


def _head(torch: str) -> tuple[Row, ...]:
    return (
        (f"{torch}.weight", "params/head/linear/kernel", _DENSE),
        (f"{torch}.bias", "params/head/linear/bias", VECTOR),
    )


def _norm(torch: str, ours: str) -> tuple[Row, ...]:
    return (
        (f"{torch}.weight", f"params/{ours}/scale", VECTOR),
        (f"{torch}.bias", f"params/{ours}/bias", VECTOR),
        (f"{torch}.running_mean", f"batch_stats/{ours}/mean", VECTOR),
        (f"{torch}.running_var", f"batch_stats/{ours}/var", VECTOR),
    )


def _conv_and_norm(conv: str, norm: str, our_conv: str, our_norm: str) -> tuple[Row, ...]:
    """A convolution without bias and its norm, or one with the norm folded into its bias."""
    return (
        (f"{conv}.weight", f"params/{our_conv}/kernel", _CONV),
        *_norm(norm, our_norm),
        (f"{conv}.bias", f"params/{our_norm}/bias", VECTOR),
    )


def _resnet_rows(config: ResNetConfig) -> Iterator[Row]:
    if config.stem == "deep":  # timm
        for i, (conv, norm) in enumerate(
            (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")), start=1
        ):
            yield from _conv_and_norm(conv, norm, f"stem/conv{i}", f"stem/norm{i}")
    else:
        yield from _conv_and_norm("conv1", "bn1", "stem/conv", "stem/norm")
    layer, block = "layer{s}.{b}", "stage{s}/block{b}"
    yield from _conv_and_norm(
        f"{layer}.conv{{c}}", f"{layer}.bn{{c}}", f"{block}/conv{{c}}", f"{block}/norm{{c}}"
    )
    # The usual CIFAR-10 code has names of its own for the shortcut and the last layer.
    cifar = config.stem == "cifar"
    shortcut = f"{layer}.{'shortcut' if cifar else 'downsample'}"
    first = 1 if config.shortcut == "D" else 0  # after the mean, which has no parameters
    yield from _conv_and_norm(
        f"{shortcut}.{first}",
        f"{shortcut}.{first + 1}",
        f"{block}/downsample/conv",
        f"{block}/downsample/norm",
    )
    yield from _head("linear" if cifar else "fc")


def _alexnet_rows() -> Iterator[Row]:
    for stage, index in zip(range(1, 6), (0, 3, 6, 8, 10), strict=True):
        yield from _conv(f"features.{index}", f"stage{stage}/conv")
    yield from _fully_connected("classifier.1", "fc6")
    yield from _fully_connected("classifier.4", "fc7")
    yield from _head("classifier.6")


def _vgg_rows(config: VGGConfig) -> Iterator[Row]:
    index = 0  # in torch's flat list: convolution, norm, ReLU, ..., max-pool
    for stage, depth in enumerate(config.depths, start=1):
        for i in range(1, depth + 1):
            yield from _conv(f"features.{index}", f"stage{stage}/conv{i}")
            if config.norm:
                yield from _norm(f"features.{index + 1}", f"stage{stage}/norm{i}")
            index += 3 if config.norm else 2
        index += 1
    yield from _fully_connected("classifier.0", "fc6", timm="pre_logits.fc1")
    yield from _fully_connected("classifier.3", "fc7", timm="pre_logits.fc2")
    yield from _head("classifier.6")
    yield from _head("head.fc")  # timm


@functools.cache
def table(architecture: Architecture) -> tuple[Row, ...]:
    """The rows of an architecture, all its stages and the linear head included."""
    config = architecture.config
    if isinstance(config, ResNetConfig):
        return tuple(_resnet_rows(config))
    return tuple(_alexnet_rows() if isinstance(config, AlexNetConfig) else _vgg_rows(config))


def our_path(name: str, architecture: Architecture) -> tuple[str, Layout] | None:
    """Our path and the layout for a torch name; None if no row matches.

    Raises:
      ValueError: two rows match; the table is wrong.
    """
    matches = [
        (ours.format_map(match.groupdict()), layout)
        for torch, ours, layout in table(architecture)
        if (match := re.fullmatch(_pattern(torch), name))
    ]
    if len(matches) > 1:
        raise ValueError(f"{len(matches)} rows of the table of {architecture.name} match {name}")
    return matches[0] if matches else None


def torch_name(path: str, architecture: Architecture) -> tuple[str, Layout]:
    """The torch name of one of our paths and its layout: the first row wins."""
    for torch, ours, layout in table(architecture):
        if match := re.fullmatch(_pattern(ours), path):
            return torch.format_map(match.groupdict()), layout
    raise ValueError(f"the table of {architecture.name} has no torch name for {path}")


@functools.cache
def _pattern(template: str) -> str:
    """A regular expression in which each `{x}` is a group x of digits."""
    return re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template))
