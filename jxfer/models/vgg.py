"""VGG in Linen with named stages, with and without BatchNorm.

Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(https://arxiv.org/abs/1409.1556), table 1: columns A, B, D and E are VGG-11, 13, 16 and 19. The
BatchNorm form is torchvision's: a norm after every convolution, which keeps its bias.
"""

import dataclasses

import flax.linen as nn
import jax

from jxfer.models.layers import Conv, Norm, TrainLayers, Window, max_pool
from jxfer.models.network import Network

_WIDTHS = {"stage1": 64, "stage2": 128, "stage3": 256, "stage4": 512, "stage5": 512}


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """One column of the paper's table 1."""

    depths: tuple[int, int, int, int, int]
    """3x3 convolutions in each stage."""
    norm: bool = False
    """A BatchNorm after each convolution."""
    side: int = 7
    """Side of the map that fc6 takes; other maps are averaged to it."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names from the input to the last stage."""
        return (*_WIDTHS, "fc6", "fc7")

    def depth(self, stage: str) -> int:
        """Convolutions in a convolutional stage."""
        return self.depths[list(_WIDTHS).index(stage)]

    def windows(self, stage: str) -> tuple[Window, ...]:
        """The windows of a convolutional stage's layers, in order."""
        return (*(Window(3, 1, 1),) * self.depth(stage), Window(2, 2, 0))


class VGG(Network):
    """VGG; dropout of 0.5 stands after fc6 and after fc7."""

    config: VGGConfig

    def stage(
        self, name: str, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        if name not in _WIDTHS:
            return self.fully_connected(name, x, "output", train_layers, keys)
        depth, width = self.config.depth(name), _WIDTHS[name]
        return Stage(depth, width, self.config.norm, self.axis_name, name=name)(x, train_layers)


class Stage(nn.Module):
    """3x3 convolutions of one width, each with its ReLU, and a max-pool that halves the map."""

    depth: int
    features: int
    norm: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        """[B, H, W, C] -> [B, H // 2, W // 2, features]."""
        for i in range(1, self.depth + 1):
            x = Conv(self.features, 3, use_bias=True, name=f"conv{i}")(x)
            if self.norm:
                x = Norm(self.axis_name, name=f"norm{i}")(x, train_layers)
            x = nn.relu(x)
        return max_pool(x, 2, 2)
