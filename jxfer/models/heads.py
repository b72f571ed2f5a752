"""Classifier heads that sit on pooled features. Used by the architectures; one class a head."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax

from jxfer.errors import UserError
from jxfer.models.initialise import declared


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
    """Probability of dropping a feature before the last layer, and after each hidden one."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp", "conv"):
            raise UserError(f"head: kind must be linear, mlp or conv, not {self.kind!r}")
        if (self.kind == "linear") != (not self.hidden):
            raise UserError(
                f"head: {self.kind} with hidden {list(self.hidden)}: mlp and conv need the widths "
                "of their hidden layers, linear has none"
            )
        if any(width < 1 for width in self.hidden):
            raise UserError(f"head: hidden widths must be at least 1, not {list(self.hidden)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"head: dropout must be at least 0 and below 1, not {self.dropout}")


class LinearHead(nn.Module):
    """One dense layer, `head/linear`: pooled [B, C] -> logits [B, num_classes], float32."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, kernel_init=declared, name="linear")(features)
