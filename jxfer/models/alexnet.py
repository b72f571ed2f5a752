"""AlexNet in Linen with named stages, in its second form, which is one tower.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
(https://arxiv.org/abs/1404.5997); the first form is Krizhevsky, Sutskever & Hinton 2012, section
3.5. Widths, paddings and the places of dropout are torchvision's, so that ported weights give the
same numbers.
"""

import dataclasses

import flax.linen as nn
import jax

from jxfer.models.layers import Conv, TrainLayers, Window, max_pool
from jxfer.models.network import Network

_CONVOLUTIONS = {
    "stage1": (64, Window(11, 4, 2)),
    "stage2": (192, Window(5, 1, 2)),
    "stage3": (384, Window(3, 1, 1)),
    "stage4": (256, Window(3, 1, 1)),
    "stage5": (256, Window(3, 1, 1)),
}
_POOL = Window(3, 2, 0)
_POOLED = ("stage1", "stage2", "stage5")


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


class AlexNet(Network):
    """AlexNet; dropout of 0.5 stands before fc6 and before fc7."""

    config: AlexNetConfig

    def stage(
        self, name: str, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        if name not in _CONVOLUTIONS:
            return self.fully_connected(name, x, "input", train_layers, keys)
        return Stage(name in _POOLED, *_CONVOLUTIONS[name], name=name)(x)


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
