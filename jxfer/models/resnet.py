"""ResNets in Linen with named stages: the CIFAR and the ImageNet families.

He et al. 2015, "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385):
section 4.2 and table 6 for CIFAR (options A and B of section 3.3), table 1 for ImageNet. The
ImageNet bottleneck is version 1.5: the stride stands in the 3x3 convolution, as in torchvision.

Paddings, BatchNorm's epsilon and the pooling follow PyTorch, so that ported weights give the same
numbers: symmetric padding (`SAME` differs at stride 2) and a max-pool padded with -inf.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jxfer.models.convolution import conv_general
from jxfer.models.heads import LinearHead
from jxfer.models.initialise import declared

NormPaths = frozenset[str]


class Conv(nn.Module):
    """Convolution without bias, padded symmetrically as PyTorch does. [B, H, W, C] -> same rank."""

    features: int
    kernel_size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", declared, shape, jnp.float32)
        return conv_general(x, kernel, self.stride, self.kernel_size // 2)


class Norm(nn.Module):
    """BatchNorm (Ioffe & Szegedy 2015) that asks by its path whether it trains.

    A layer whose path is in `train_norms` normalises by the batch and moves its running averages
    (which keep 0.9 of the old value, PyTorch's momentum of 0.1); every other layer runs on its
    stored averages. `axis_name` synchronises the batch's moments over devices.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        path = "/".join(self.path)
        norm = nn.BatchNorm(
            use_running_average=path not in train_norms,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name,
        )
        nn.share_scope(self, norm)  # the leaves are norm/scale, not norm/BatchNorm_0/scale
        return norm(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: He et al. 2015, figure 5 left.

    `shortcut` is what stands on the shortcut where the shape changes: "A" strides and pads the
    channels with zeros, no parameters; "B" is a 1x1 convolution.
    """

    features: int
    stride: int
    shortcut: Literal["A", "B"]
    norm: Callable[..., Norm]

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        y = Conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train_norms))
        y = Conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y, train_norms)
        if x.shape != y.shape:
            if self.shortcut == "A":
                x = x[:, :: self.stride, :: self.stride, :]
                extra = self.features - x.shape[-1]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
            else:
                x = Downsample(self.features, self.stride, self.norm, name="downsample")(
                    x, train_norms
                )
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: He et al. 2015, figure 5 right, with the stride in the 3x3."""

    features: int
    stride: int
    shortcut: Literal["A", "B"]  # unused: the bottleneck always projects
    norm: Callable[..., Norm]

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        out = self.features * self.expansion
        y = nn.relu(self.norm(name="norm1")(Conv(self.features, 1, name="conv1")(x), train_norms))
        y = Conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train_norms))
        y = self.norm(name="norm3")(Conv(out, 1, name="conv3")(y), train_norms)
        if x.shape != y.shape:
            x = Downsample(out, self.stride, self.norm, name="downsample")(x, train_norms)
        return nn.relu(x + y)


class Downsample(nn.Module):
    """Option B's projection: a 1x1 convolution and a norm."""

    features: int
    stride: int
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        x = Conv(self.features, 1, self.stride, name="conv")(x)
        return self.norm(name="norm")(x, train_norms)


class Stem(nn.Module):
    """The layers before the first stage.

    "cifar": a 3x3 convolution at stride 1. "imagenet": a 7x7 one at stride 2 and a 3x3 max-pool.
    """

    features: int
    kind: Literal["cifar", "imagenet"]
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        kernel_size, stride = (3, 1) if self.kind == "cifar" else (7, 2)
        x = Conv(self.features, kernel_size, stride, name="conv")(x)
        x = nn.relu(self.norm(name="norm")(x, train_norms))
        if self.kind == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class Stage(nn.Module):
    """Blocks of one width; the first one may change the resolution."""

    block: type[BasicBlock] | type[Bottleneck]
    depth: int
    features: int
    stride: int
    shortcut: Literal["A", "B"]
    norm: Callable[..., Norm]

    @nn.compact
    def __call__(self, x: jax.Array, train_norms: NormPaths) -> jax.Array:
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            block = self.block(
                self.features,
                stride,
                self.shortcut,
                self.norm,
                name=f"block{i}",
            )
            x = block(x, train_norms)
        return x


class ResNet(nn.Module):
    """A residual network up to its last listed stage, with a head on the pooled features.

    Attributes:
      depths: blocks in each stage that is built; `depths[:3]` of four builds through stage 3.
      width: channels of the stem and of stage 1 (before the block's expansion).
      num_classes: classes of the head; None builds no head.
      axis_name: mesh axis over which BatchNorm synchronises; None keeps it per device.
    """

    depths: Sequence[int]
    block: type[BasicBlock] | type[Bottleneck]
    width: int
    stem: Literal["cifar", "imagenet"]
    shortcut: Literal["A", "B"]
    num_classes: int | None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train_norms: NormPaths = frozenset()
    ) -> dict[str, jax.Array]:
        """Returns every stage's output by name, in one pass.

        Args:
          images: [B, H, W, 3] float, normalised. Any H and W.
          train_norms: paths of the norm layers that normalise by the batch.

        Returns:
          `stem`, `stage1`, ...: [B, h, w, C], each after its last ReLU; `pooled`: [B, C], the mean
          over positions; `logits`: [B, num_classes] where there is a head. What the caller does
          not use, the compiler removes.
        """
        norm = functools.partial(Norm, axis_name=self.axis_name)
        outputs: dict[str, jax.Array] = {}
        x = Stem(self.width, self.stem, norm, name="stem")(images, train_norms)
        outputs["stem"] = x
        for i, depth in enumerate(self.depths):
            stage = Stage(
                self.block,
                depth,
                self.width * 2**i,
                stride=1 if i == 0 else 2,
                shortcut=self.shortcut,
                norm=norm,
                name=f"stage{i + 1}",
            )
            x = stage(x, train_norms)
            outputs[f"stage{i + 1}"] = x
        outputs["pooled"] = jnp.mean(x, axis=(1, 2))
        if self.num_classes is not None:
            outputs["logits"] = LinearHead(self.num_classes, name="head")(outputs["pooled"])
        return outputs
