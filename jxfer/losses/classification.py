"""Cross-entropy of single-label classification. Pure functions of logits and labels."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jxfer import choices
from jxfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the training minimises. Validation and test report plain cross-entropy."""

    label_smoothing: float = 0.0
    """Mass spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Balanced weighs the images of a class inversely to how many there are in training; the loss
    of a batch is then divided by the sum of its weights."""

    def __post_init__(self) -> None:
        choices.check(self, "--loss.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--loss.label-smoothing {self.label_smoothing}: it must be in [0, 1)")


def balanced_weights(labels: np.ndarray, class_names: Sequence[str]) -> tuple[float, ...]:
    """The weight n / (K n_k) of each class, as scikit-learn's `balanced`.

    Each class so weighs n / K in total, and an example 1 on average (King & Zeng 2001, "Logistic
    Regression in Rare Events Data").

    Args:
      labels: int [n], of the training split.
      class_names: K of them, by label.

    Raises:
      UserError: a class has no example.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if not counts.all():
        empty = class_names[int(counts.argmin())]
        raise UserError(
            f"class {empty} has no training image to weigh: add some, or leave out "
            "--loss.class-weights"
        )
    return tuple((len(labels) / (len(class_names) * counts)).tolist())


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """Per-example loss, -sum_k w_k q_k log softmax(logits)_k, in nats.

    q = (1 - s) * onehot(label) + s / K, with s the smoothing and K the number of classes: Szegedy
    et al. 2016, "Rethinking the Inception Architecture", section 7. The weights w stand where
    PyTorch has them.

    Args:
      logits: [B, K] float.
      labels: [B] int.
      label_smoothing: s in [0, 1).
      class_weights: w, K numbers; all 1 unless given.

    Returns:
      [B] float32.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    if class_weights is not None:
        log_probabilities = log_probabilities * jnp.asarray(class_weights, jnp.float32)[None]
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    uniform = jnp.mean(log_probabilities, axis=-1)
    return -(1.0 - label_smoothing) * own - label_smoothing * uniform


def mixed_loss(
    batch: Mapping[str, jax.Array], by_label: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """w f(label) + (1 - w) f(partner_label) where a batch is mixed, else f(label).

    Args:
      batch: `label` int [B]; of mixup or CutMix also `partner_label` int [B], `own_weight` w [B].
      by_label: f, from labels [B] to a figure of each example.

    Returns:
      [B] float32.
    """
    own = by_label(batch["label"])
    if "partner_label" not in batch:
        return own
    weight = batch["own_weight"]
    return weight * own + (1 - weight) * by_label(batch["partner_label"])
