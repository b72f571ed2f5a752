"""Cross-entropy of single-label classification. Pure functions of logits and labels."""

import dataclasses

import jax
import jax.numpy as jnp

from jxfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the training minimises. Validation and test report plain cross-entropy."""

    label_smoothing: float = 0.0
    """Mass spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--loss.label-smoothing {self.label_smoothing}: it must be in [0, 1)")


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Per-example loss, -sum_k q_k log softmax(logits)_k, in nats.

    q = (1 - s) * onehot(label) + s / K, with s the smoothing and K the number of classes: Szegedy
    et al. 2016, "Rethinking the Inception Architecture", section 7.

    Args:
      logits: [B, K] float.
      labels: [B] int.
      label_smoothing: s in [0, 1).

    Returns:
      [B] float32.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    uniform = jnp.mean(log_probabilities, axis=-1)
    return -(1.0 - label_smoothing) * own - label_smoothing * uniform
