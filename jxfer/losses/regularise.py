"""Regularisers towards the start of fine-tuning: their strengths, and pure functions.

After `classification` in the flow; `train.regularisers` says on which leaves and stages each acts.
All work in float32.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jxfer import choices
from jxfer.errors import UserError


@dataclasses.dataclass(frozen=True)
class RegulariseConfig:
    """What is added to the classification loss. A strength of 0 is off, and costs nothing.

    In a strategy of phases each acts in those in which it has something to act on.
    """

    l2_sp: float = 0.0
    """Strength alpha of the pull of pretrained parameters to their start (Li et al. 2018); it
    stands in place of weight decay, so set --optimizer.weight-decay 0."""
    l2_sp_head: float = 0.0
    """Strength beta of the pull of new parameters to zero; goes with l2_sp."""
    delta: float = 0.0
    """Strength of the match of each stage's features with those of the start, on the same images
    (Li et al. 2019, without the attention over channels)."""
    co_tuning: float = 0.0
    """Strength of the source classifier's share (You et al. 2020); the weights must hold it."""
    bss: float = 0.0
    """Strength of batch spectral shrinkage (Chen et al. 2019)."""
    bss_k: int = 1
    """For bss: how many singular values it shrinks, from the smallest on."""

    def __post_init__(self) -> None:
        option = functools.partial(choices.option, "--regularise.")
        for name in ("l2_sp", "l2_sp_head", "delta", "co_tuning", "bss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{option(name)} {getattr(self, name):g}: it must be at least 0")
        if self.bss_k < 1:
            raise UserError(f"--regularise.bss-k {self.bss_k}: it must be at least 1")
        for name, needed in (("l2_sp_head", "l2_sp"), ("bss_k", "bss")):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default and not getattr(self, needed):
                raise UserError(f"{option(name)} goes with {option(needed)}; leave it out")


def half_square(leaves: Iterable[jax.Array]) -> jax.Array:
    """1/2 sum_i ||w_i||^2 over arrays of any shapes, a float32 scalar.

    L2-SP (Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", section 3.2) is made of two of them:

        Omega(w) = alpha/2 ||w_S - w0_S||^2 + beta/2 ||w_new||^2

    with w_S the pretrained parameters, w0_S their values at the start, w_new the new parameters.
    """
    return 0.5 * sum(
        (jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0)
    )


def feature_distance(features: jax.Array, start: jax.Array) -> jax.Array:
    """1/2 sum_c mean_hw (FM(w) - FM(w0))^2 of each example, the features of one stage.

    DELTA (Li et al. 2019, "DELTA: Deep Learning Transfer using Feature Map with Attention for
    Convolutional Networks", section 3.2) weights channel c of a layer by the rise of the loss
    without it. Here all have the same weight: the paper's own variant without attention. The
    paper's second term, the L2 of the new parameters, is left to weight decay.

    The squares are added up over channels and averaged over positions, which is what the authors'
    code makes of equal weights. So the strength means the same at any image size. The caller takes
    the mean over the batch, as for the cross-entropy, and adds up over stages.

    Args:
      features: [B, H, W, C] or [B, C].
      start: the same, of the network at the start.

    Returns:
      [B] float32.
    """
    squares = jnp.square(features.astype(jnp.float32) - start.astype(jnp.float32))
    positions = math.prod(features.shape[1:-1])
    return 0.5 * jnp.sum(squares, axis=range(1, squares.ndim)) / positions


def batch_spectral_shrinkage(features: jax.Array, k: int = 1) -> jax.Array:
    """sum_{i=1..k} sigma_{-i}^2: the k smallest squared singular values of a batch's features.

    Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage
    for Safe Transfer Learning", section 4. They are the eigenvalues of the smaller of F F^T and
    F^T F, good to about 1e-7 of the largest, at a tenth of the cost of a singular value
    decomposition. Unlike those of singular vectors, their gradients, 2 sigma_i u_i v_i^T, stay
    finite where two of them meet.

    Args:
      features: F [B, C], of the whole batch; it has min(B, C) singular values.
      k: how many, at least 1.

    Returns:
      A float32 scalar.

    Raises:
      UserError: k is larger than min(B, C).
    """
    if k > min(features.shape):
        examples, channels = features.shape
        raise UserError(
            f"--regularise.bss-k {k}: {examples} examples of {channels} features have "
            f"{min(features.shape)} singular values; lower it"
        )
    features = features.astype(jnp.float32)
    wide = features.shape[0] < features.shape[1]
    rows, columns = (features, features.T) if wide else (features.T, features)
    gram = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.linalg.eigvalsh(gram)[:k])  # in ascending order


def co_tuning(source_logits: jax.Array, labels: jax.Array, relationship: jax.Array) -> jax.Array:
    """-sum_s p(s | y) log softmax(source_logits)_s of each example, with y its label.

    Co-Tuning (You et al. 2020, "Co-Tuning for Transfer Learning", section 3) keeps the source's
    classifier on the features and trains it, beside the new one, on the source classes that go
    with each target class.

    Args:
      source_logits: [B, K_s] of the source's classifier.
      labels: [B] int, of the K_t target classes.
      relationship: p(s | t) [K_t, K_s]. By the paper's direct approach, row t is the mean of the
        source network's probabilities over the training examples of class t. Its reverse approach
        (p(t | s) by a regression, turned round by Bayes' rule), and its calibration of the
        probabilities on source data, which are not at hand, are left out.

    Returns:
      [B] float32.
    """
    log_probabilities = jax.nn.log_softmax(source_logits.astype(jnp.float32))
    return -jnp.sum(relationship[labels] * log_probabilities, axis=-1)
