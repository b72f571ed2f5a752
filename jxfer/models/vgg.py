"""VGG in Linen with named stages, with and without BatchNorm.

Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(https://arxiv.org/abs/1409.1556), table 1: columns A, B, D and E are VGG-11, 13, 16 and 19. The
BatchNorm form is torchvision's: a norm after every convolution, which keeps its bias.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from jxfer.models.heads import Head, HeadConfig
from jxfer.models.layers import (
    Conv,
    FullyConnected,
    Norm,
    TrainLayers,
    Window,
    adaptive_pool,
    max_pool,
    mean_pool,
)

_WIDTHS = {"stage1": 64, "stage2": 128, "stage3": 256, "stage4": 512, "stage5": 512}
_CODE = 4096  # features of fc6 and fc7


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


class VGG(nn.Module):
    """VGG up to its last listed stage, with a head on it.

    Dropout of 0.5 stands after fc6 and after fc7.

    Attributes:
      config: of the architecture.
      stages: names of the stages that are built; `stages[:3]` builds through stage 3.
      num_classes: classes of the head; None builds no head.
      head: form of the head.
      axis_name: mesh axis over which BatchNorm synchronises; None keeps it per device.
      window: None scores the image as a whole; see `dense.convolutional` for a number.
    """

    config: VGGConfig
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
        stage = functools.partial(Stage, norm=self.config.norm, axis_name=self.axis_name)
        x = images
        for name in self.stages:
            if name in _WIDTHS:
                x = stage(self.config.depth(name), _WIDTHS[name], name=name)(x, train_layers)
            else:
                side = self.config.side if name == "fc6" else 1
                if name == "fc6" and not dense:
                    x = adaptive_pool(x, side)
                x = FullyConnected(_CODE, side, 0.5, "output", dense, name=name)(
                    x, train_layers, keys
                )
            outputs[name] = x
        is_code = self.stages[-1] not in _WIDTHS
        outputs["pooled"] = x if is_code else mean_pool(x, self.window)
        if self.num_classes is not None:
            head = Head(self.head, self.num_classes, self.window, name="head")
            outputs["logits"] = head(x, outputs["pooled"], train_layers, keys)
        return outputs


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
