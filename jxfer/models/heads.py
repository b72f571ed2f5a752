"""Classifier heads that sit on pooled features. Used by the architectures; one class a head."""

import flax.linen as nn
import jax


class LinearHead(nn.Module):
    """One dense layer, `head/linear`: pooled features [B, C] -> logits [B, num_classes], float32.

    The kernel starts at zero mean and variance 1/C (Flax's default), the bias at zero.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, name="linear")(features)
