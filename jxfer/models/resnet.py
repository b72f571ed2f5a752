"""ResNets in Linen with named stages: CIFAR's and ImageNet's, wide, grouped, and ResNet-D.

He et al. 2015, "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385):
section 4.2 and table 6 for CIFAR (options A and B of section 3.3), table 1 for ImageNet. The
ImageNet bottleneck is version 1.5: the stride stands in the 3x3 convolution, as in torchvision.
Wide: Zagoruyko & Komodakis 2016 (https://arxiv.org/abs/1605.07146). ResNeXt: Xie et al. 2016
(https://arxiv.org/abs/1611.05431), figure 3c. ResNet-D: He et al. 2018, "Bag of Tricks"
(https://arxiv.org/abs/1812.01187), section 4.2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jxfer.models.layers import Conv, Norm, TrainLayers, Window, halving_pool, max_pool
from jxfer.models.network import Network


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What tells one residual network from another."""

    depths: tuple[int, ...]
    """Blocks in each stage."""
    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 to four times the width."""
    width: int = 64
    """Channels of the stem and of stage 1 (before the block's expansion); each stage doubles it."""
    stem: Literal["cifar", "imagenet", "deep"] = "imagenet"
    """A 3x3 convolution; a 7x7 one at stride 2 and a max-pool; three 3x3 ones and a max-pool."""
    shortcut: Literal["A", "B", "D"] = "B"
    """Where the shape changes: strided and padded with zeros; a 1x1 convolution; a 2x2 mean before
    a 1x1 convolution of stride 1."""
    groups: int = 1
    """Groups of the bottleneck's 3x3 convolution: ResNeXt's cardinality."""
    group_width: int = 64
    """Channels of each of its groups in stage 1."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names from the input to the last stage."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.depths))))

    def windows(self, stage: str) -> tuple[Window, ...]:
        """The windows along a stage's longest path, in order; the shortcuts see less."""
        same, half, pool = Window(3, 1, 1), Window(3, 2, 1), Window(3, 2, 1)
        if stage == "stem":
            stems = {
                "cifar": (same,),
                "imagenet": (Window(7, 2, 3), pool),
                "deep": (half, same, same, pool),
            }
            return stems[self.stem]
        first = same if stage == "stage1" else half
        others = (2 if self.block == "basic" else 1) * self.depths[self._index(stage)] - 1
        return (first, *(same,) * others)

    def _index(self, stage: str) -> int:
        return self.stages.index(stage) - 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: He et al. 2015, figure 5 left."""

    config: ResNetConfig
    features: int
    stride: int
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        y = Conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train_layers))
        y = Conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y, train_layers)
        if x.shape != y.shape:
            if self.config.shortcut == "A":
                x = x[:, :: self.stride, :: self.stride, :]
                extra = self.features - x.shape[-1]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
            else:
                average = self.config.shortcut == "D"
                x = Downsample(self.features, self.stride, average, self.norm, name="downsample")(
                    x, train_layers
                )
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: He et al. 2015, figure 5 right, with the stride in the 3x3.

    The inner width is `features`, times the number of groups, times what a group has over 64.
    """

    config: ResNetConfig
    features: int
    stride: int
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        groups = self.config.groups
        inner, out = self.features * self.config.group_width // 64 * groups, 4 * self.features
        y = nn.relu(self.norm(name="norm1")(Conv(inner, 1, name="conv1")(x), train_layers))
        y = Conv(inner, 3, self.stride, groups=groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train_layers))
        y = self.norm(name="norm3")(Conv(out, 1, name="conv3")(y), train_layers)
        if x.shape != y.shape:
            average = self.config.shortcut == "D"
            x = Downsample(out, self.stride, average, self.norm, name="downsample")(x, train_layers)
        return nn.relu(x + y)


class Downsample(nn.Module):
    """A projection on the shortcut: a 1x1 convolution and a norm.

    The stride is the convolution's (option B), or that of a mean before it (ResNet-D), which then
    drops no pixel.
    """

    features: int
    stride: int
    average: bool
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        stride = self.stride
        if self.average and stride == 2:
            x, stride = halving_pool(x), 1
        x = Conv(self.features, 1, stride, name="conv")(x)
        return self.norm(name="norm")(x, train_layers)


class Stem(nn.Module):
    """The layers before the first stage; see `ResNetConfig.stem`."""

    features: int
    kind: Literal["cifar", "imagenet", "deep"]
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        if self.kind == "deep":
            half = self.features // 2
            for i, (features, stride) in enumerate(((half, 2), (half, 1), (self.features, 1)), 1):
                x = Conv(features, 3, stride, name=f"conv{i}")(x)
                x = nn.relu(self.norm(name=f"norm{i}")(x, train_layers))
        else:
            size, stride = (3, 1) if self.kind == "cifar" else (7, 2)
            x = Conv(self.features, size, stride, name="conv")(x)
            x = nn.relu(self.norm(name="norm")(x, train_layers))
        return x if self.kind == "cifar" else max_pool(x, 3, 2, padding=1)


class Stage(nn.Module):
    """Blocks of one width; the first one may change the resolution."""

    config: ResNetConfig
    depth: int
    features: int
    stride: int
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        block = BasicBlock if self.config.block == "basic" else Bottleneck
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            x = block(self.config, self.features, stride, self.norm, name=f"block{i}")(
                x, train_layers
            )
        return x


class ResNet(Network):
    """A residual network."""

    config: ResNetConfig

    def stage(
        self, name: str, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        config = self.config
        norm = functools.partial(Norm, axis_name=self.axis_name)
        if name == "stem":
            return Stem(config.width, config.stem, norm, name=name)(x, train_layers)
        i = config.stages.index(name) - 1
        stride = 1 if i == 0 else 2
        stage = Stage(config, config.depths[i], config.width * 2**i, stride, norm, name=name)
        return stage(x, train_layers)
