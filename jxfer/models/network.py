"""What the families share: named stages one after another, pooled features, a head.

After `heads`, before the families, each of which says what a stage of a name is.
"""

from typing import Any, Literal

import flax.linen as nn
import jax

from jxfer.models.heads import Head, HeadConfig
from jxfer.models.layers import FullyConnected, TrainLayers, adaptive_pool, mean_pool

CODE = 4096
"""Features of fc6 and fc7."""
POOLED = "pooled"
"""Name of the last stage's mean over positions among the outputs."""


class Network(nn.Module):
    """A network up to its last listed stage, with a head on it.

    Attributes:
      config: of the architecture.
      stages: names of the stages that are built; `stages[:3]` builds the first three.
      num_classes: classes of the head; None builds no head.
      head: form of the head.
      axis_name: mesh axis over which BatchNorm synchronises; None keeps it per device.
      window: None scores the image as a whole; see `dense.convolutional` for a number.
      remat: compute each stage again in the backward pass instead of keeping what it computed
        (Chen et al. 2016, https://arxiv.org/abs/1604.06174); only its input is kept.
    """

    config: Any
    stages: tuple[str, ...]
    num_classes: int | None
    head: HeadConfig = HeadConfig()
    axis_name: str | None = None
    window: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train_layers: TrainLayers = frozenset(),
        keys: jax.Array | None = None,
        after: str | None = None,
    ) -> dict[str, jax.Array]:
        """Returns every stage's output by name, in one pass; see `registry.Model.apply`."""
        outputs: dict[str, jax.Array] = {}
        x = images
        for name in self._stages_after(after):
            x = outputs[name] = self._apply_stage(name, x, train_layers, keys)
        is_vector = after == POOLED or self.stages[-1].startswith("fc")
        outputs[POOLED] = x if is_vector else mean_pool(x, self.window)
        if self.num_classes is not None:
            head = Head(self.head, self.num_classes, self.window, name="head")
            outputs["logits"] = head(x, outputs[POOLED], train_layers, keys)
        return outputs

    def _stages_after(self, after: str | None) -> tuple[str, ...]:
        if after is None:
            return self.stages
        return () if after == POOLED else self.stages[self.stages.index(after) + 1 :]

    def _apply_stage(
        self, name: str, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        if not self.remat:
            return self.stage(name, x, train_layers, keys)

        def stage(network: Network, x: jax.Array, keys: jax.Array | None) -> jax.Array:
            return network.stage(name, x, train_layers, keys)

        return nn.remat(stage)(self, x, keys)

    def stage(
        self, name: str, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        """Applies the stage of a name; called inside `__call__` alone."""
        raise NotImplementedError

    def fully_connected(
        self,
        name: str,
        x: jax.Array,
        drops: Literal["input", "output"],
        train_layers: TrainLayers,
        keys: jax.Array | None,
    ) -> jax.Array:
        """fc6 over the last map, averaged to its side, or fc7; dropout of 0.5 on `drops`."""
        side = self.config.side if name == "fc6" else 1
        dense = self.window is not None
        if name == "fc6" and not dense:
            x = adaptive_pool(x, side)
        return FullyConnected(CODE, side, 0.5, drops, dense, name=name)(x, train_layers, keys)
