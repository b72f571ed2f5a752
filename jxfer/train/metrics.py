"""Metrics stay sums and counts, over devices, batches and hosts, until they are printed."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, Any]  # name -> array; two of them add leaf by leaf


def training_sums(
    losses: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    terms: Mapping[str, jax.Array] | None = None,
) -> Sums:
    """Sums of a training batch: losses [B], logits [B, K], labels [B].

    A term of the objective besides the loss is a mean over the batch, so it counts B times.
    """
    examples = labels.shape[0]
    return {name: examples * term for name, term in (terms or {}).items()} | {
        "loss": jnp.sum(losses),
        "correct": jnp.sum(jnp.argmax(logits, -1) == labels),
        "examples": jnp.int32(examples),
    }


def evaluation_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> Sums:
    """Sums of an evaluation batch; where `mask` [B] is 0 the row is padding and counts nowhere.

    `correct`, `predicted` and `actual` are per class [K]: correct predictions, all predictions,
    all examples.
    """
    real = mask > 0
    classes = logits.shape[-1]
    predicted = jnp.argmax(logits, -1)
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    rank = jnp.sum(~(logits <= own), -1)  # written so that NaN is never among the best

    def per_class(index: jax.Array, counted: jax.Array) -> jax.Array:
        return jnp.zeros(classes, jnp.int32).at[index].add(counted.astype(jnp.int32))

    return {
        "loss": jnp.sum(jnp.where(real, losses, 0.0)),
        "top5": jnp.sum(real & (rank < 5)),
        "correct": per_class(labels, real & (predicted == labels)),
        "predicted": per_class(predicted, real),
        "actual": per_class(labels, real),
    }


def add(parts: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Adds sums on the host: those of floats, such as losses, in float64; counts in int64."""
    total: dict[str, np.ndarray] = {}
    for part in parts:
        for name, value in part.items():
            array = np.asarray(value)
            wide = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
            total[name] = total[name] + wide if name in total else wide
    return total


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of one pass over a split."""

    accuracy: float
    top5_accuracy: float | None
    """None with five classes or fewer, where it says nothing."""
    macro_f1: float
    """Mean of per-class F1 over the classes that occur or are predicted, as scikit-learn's."""
    loss: float
    """Mean cross-entropy, nats, without label smoothing."""
    correct: int
    examples: int


def evaluation(sums: Mapping[str, np.ndarray]) -> Evaluation:
    """Turns added-up `evaluation_sums` into figures."""
    examples, correct = int(sums["actual"].sum()), int(sums["correct"].sum())
    seen = sums["actual"] + sums["predicted"]
    f1 = 2 * sums["correct"][seen > 0] / seen[seen > 0]
    return Evaluation(
        accuracy=correct / examples,
        top5_accuracy=int(sums["top5"]) / examples if len(seen) > 5 else None,
        macro_f1=float(f1.mean()),
        loss=float(sums["loss"]) / examples,
        correct=correct,
        examples=examples,
    )
