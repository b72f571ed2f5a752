"""Classifier heads that sit on pooled features. Used by the architectures; one class a head."""

import flax.linen as nn
import jax

from jxfer.models.initialise import declared


class LinearHead(nn.Module):
    """One dense layer, `head/linear`: pooled [B, C] -> logits [B, num_classes], float32."""

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, kernel_init=declared, name="linear")(features)
