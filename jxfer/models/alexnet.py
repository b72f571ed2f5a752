"""AlexNet in Linen with named stages, in its second form, which is one tower.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
(https://arxiv.org/abs/1404.5997); the first form is Krizhevsky, Sutskever & Hinton 2012, section
3.5. Widths, paddings and the places of dropout are torchvision's, so that ported weights give the
same numbers.
"""

import dataclasses

import flax.linen as nn
import jax

from jxfer.models.heads import Head, HeadConfig
from jxfer.models.layers import (
    Conv,
    FullyConnected,
    TrainLayers,
    Window,
    adaptive_pool,
    max_pool,
    mean_pool,
)

_CONVOLUTIONS = {
    "stage1": (64, Window(11, 4, 2)),
    "stage2": (192, Window(5, 1, 2)),
    "stage3": (384, Window(3, 1, 1)),
    "stage4": (256, Window(3, 1, 1)),
    "stage5": (256, Window(3, 1, 1)),
}
_POOL = Window(3, 2, 0)
_POOLED = ("stage1", "stage2", "stage5")
_CODE = 4096  # features of fc6 and fc7


@dataclasses.dataclass(frozen=True)
class AlexNetConfig:
    """What the rest needs to know of AlexNet, of which there is one."""

    side: int = 6
    """Side of the map that fc6 takes; other maps are averaged to it."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names from the input to the last stage."""
        return (*_CONVOLUTIONS, "fc6", "fc7")

    def windows(self, stage: str) -> tuple[Window, ...]:
        """The windows of a convolutional stage's layers, in order."""
        return (_CONVOLUTIONS[stage][1], *((_POOL,) if stage in _POOLED else ()))


class AlexNet(nn.Module):
    """AlexNet up to its last listed stage, with a head on it.

    Dropout of 0.5 stands before fc6 and before fc7.

    Attributes:
      config: of the architecture.
      stages: names of the stages that are built; `stages[:3]` builds through stage 3.
      num_classes: classes of the head; None builds no head.
      head: form of the head.
      axis_name: not used: there are no norms.
      window: None scores the image as a whole; see `dense.convolutional` for a number.
    """

    config: AlexNetConfig
    stages: tuple[str, ...]
    num_classes: int | None
    head: HeadConfig = HeadConfig()
    axis_name: str | None = None
    window: int | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train_layers: TrainLayers = frozenset(),
        keys: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Returns every stage's output by name, in one pass; see `registry.Model.apply`."""
        outputs: dict[str, jax.Array] = {}
        dense = self.window is not None
        x = images
        for name in self.stages:
            if name in _CONVOLUTIONS:
                x = Stage(name in _POOLED, *_CONVOLUTIONS[name], name=name)(x)
            else:
                side = self.config.side if name == "fc6" else 1
                if name == "fc6" and not dense:
                    x = adaptive_pool(x, side)
                x = FullyConnected(_CODE, side, 0.5, "input", dense, name=name)(
                    x, train_layers, keys
                )
            outputs[name] = x
        is_code = self.stages[-1] not in _CONVOLUTIONS
        outputs["pooled"] = x if is_code else mean_pool(x, self.window)
        if self.num_classes is not None:
            head = Head(self.head, self.num_classes, self.window, name="head")
            outputs["logits"] = head(x, outputs["pooled"], train_layers, keys)
        return outputs


class Stage(nn.Module):
    """A convolution with bias, ReLU, and in some stages a max-pool. [B, H, W, C] -> same rank."""

    pooled: bool
    features: int
    window: Window

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride, padding = self.window
        x = nn.relu(Conv(self.features, size, stride, padding, use_bias=True, name="conv")(x))
        return max_pool(x, _POOL.size, _POOL.stride) if self.pooled else x
