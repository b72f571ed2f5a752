"""Classifier heads. Used by the architectures, which put one on their last stage.

After `layers` in the flow. The last layer is `head/linear` in every kind.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jxfer import choices
from jxfer.errors import UserError
from jxfer.models.layers import Conv, Dense, Dropout, TrainLayers, mean_pool


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What stands on top of the backbone.

    Raises:
      UserError: a field is out of range, or two fields contradict each other.
    """

    kind: Literal["linear", "mlp", "conv"] = "linear"
    """linear: one dense layer; mlp: hidden dense layers before it; conv: 3x3 convolutions on the
    last feature map, before pooling."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers (mlp) or convolutions (conv), each with a ReLU."""
    dropout: float = 0.0
    """Probability of dropping a feature after each hidden layer, and before the last layer."""

    def __post_init__(self) -> None:
        choices.check(self, "head: ")
        if (self.kind == "linear") != (not self.hidden):
            raise UserError(
                f"head: {self.kind} with hidden {list(self.hidden)}: mlp and conv need the widths "
                "of their hidden layers, linear has none"
            )
        if any(width < 1 for width in self.hidden):
            raise UserError(f"head: hidden widths must be at least 1, not {list(self.hidden)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"head: dropout must be at least 0 and below 1, not {self.dropout}")


class Head(nn.Module):
    """From the last stage to logits.

    linear: `head/linear` on the pooled features. mlp: `head/hidden1`, `head/hidden2`, ... and a
    ReLU each before it. conv: `head/conv1`, ... (3x3, same size, ReLU) on the map, the mean over
    positions, then `head/linear`. `head/dropout` stands before `head/linear`; hidden layer 2 has
    `head/dropout2` before it, and so on.

    Attributes:
      window: None gives one vector of logits an image. A number makes every layer a convolution
        (kernels [1, 1, C, K] instead of [C, K]), with the mean over each window of that side.
    """

    config: HeadConfig
    num_classes: int
    window: int | None = None

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        pooled: jax.Array,
        train_layers: TrainLayers,
        keys: jax.Array | None,
    ) -> jax.Array:
        """Logits, float32: the last layer computes in it whatever comes in.

        Args:
          features: the last stage's output, [B, H, W, C]; only the conv head looks at it.
          pooled: its mean over positions, [B, C], or with a window [B, h, w, C].
          train_layers: paths of the layers in train mode.
          keys: [B] typed PRNG keys for dropout, or None.

        Returns:
          [B, num_classes], or with a window [B, h, w, num_classes].
        """
        convolutional = self.config.kind == "conv"
        x = features if convolutional else pooled
        for i, width in enumerate(self.config.hidden, start=1):
            if i > 1:
                x = Dropout(self.config.dropout, name=f"dropout{i}")(x, train_layers, keys)
            if convolutional:
                x = nn.relu(Conv(width, 3, use_bias=True, name=f"conv{i}")(x))
            else:
                x = nn.relu(self._linear(width, f"hidden{i}")(x))
        if convolutional:
            x = mean_pool(x, self.window)
        x = Dropout(self.config.dropout, name="dropout")(x, train_layers, keys)
        return self._linear(self.num_classes, "linear")(x.astype(jnp.float32))

    def _linear(self, features: int, name: str) -> nn.Module:
        if self.window is None:
            return Dense(features, name=name)
        return Conv(features, 1, use_bias=True, name=name)
