"""Unsupervised domain adaptation: its config, and the terms that it adds, as pure functions.

After `adversarial` in the flow, which holds the parts of DANN and CDAN. All work in float32. Images
of the source have labels, those of the target have none; the terms draw the two together, or make
the target's predictions sharper.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jxfer import choices
from jxfer.errors import UserError
from jxfer.losses.adversarial import entropy_weights

Method = Literal["none", "source_only", "adabn", "coral", "dan", "dann", "cdan", "mcc"]
Select = Literal["source", "importance_weighted", "entropy", "density"]


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """How a network trained on a labelled source is adapted to an unlabelled target."""

    method: Method = "none"
    """source_only trains on the source alone and is evaluated on the target; adabn (Li et al. 2017)
    then takes BatchNorm's statistics from the target; coral (Sun & Saenko 2016), dan (Long et al.
    2015), dann (Ganin et al. 2016), cdan (Long et al. 2018, with entropy conditioning) and mcc (Jin
    et al. 2020) add a term to the loss."""
    target: str | None = None
    """Data spec of the target; its labels are never trained on."""
    weight: float = 1.0
    """Strength of the term that coral, dan, dann, cdan and mcc add."""
    select: Select = "source"
    """What picks the best step without target labels: accuracy on the source's validation split,
    the same with importance weights, or entropy or neighbourhood density of the target's
    predictions."""
    partial: bool = False
    """Allow classes of source and target that overlap only partly."""
    temperature: float = 2.5
    """For mcc: divides the logits."""

    def __post_init__(self) -> None:
        choices.check(self, "--adapt.")
        if not 0 <= self.weight < math.inf:
            raise UserError(f"--adapt.weight {self.weight:g}: it must be at least 0")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--adapt.temperature {self.temperature:g}: it must be above 0")
        if self.acts and self.target is None:
            raise UserError(
                f"--adapt.method {self.method} needs --adapt.target, "
                "the data spec of the unlabelled target"
            )
        for name, applies in (
            ("target", self.acts),
            ("select", self.acts),
            ("partial", self.acts),
            ("weight", self.has_term),
            ("temperature", self.method == "mcc"),
        ):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default and not applies:
                option = choices.option("--adapt.", name)
                raise UserError(
                    f"{option} does nothing under --adapt.method {self.method}; leave it out"
                )

    @property
    def acts(self) -> bool:
        """Whether there is a target."""
        return self.method != "none"

    @property
    def has_term(self) -> bool:
        """Whether the method adds to the loss."""
        return self.method in ("coral", "dan", "dann", "cdan", "mcc")

    @property
    def is_adversarial(self) -> bool:
        """Whether a discriminator of the domains trains beside the network."""
        return self.method in ("dann", "cdan")


def coral(source: jax.Array, target: jax.Array) -> jax.Array:
    """||C_S - C_T||_F^2 / (4 C^2), with C_S and C_T the covariances of the two batches.

    Sun & Saenko 2016, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", section 3.1,
    eq. 1 to 3. The covariances are divided by the number of examples less one.

    Args:
      source: [B, C] features.
      target: [B', C]; B' may differ from B.

    Returns:
      A float32 scalar.

    Raises:
      UserError: a batch has less than two examples.
    """
    _check_batches("coral", source, target)
    difference = _covariance(source) - _covariance(target)
    return jnp.sum(jnp.square(difference)) / (4 * source.shape[1] ** 2)


def _covariance(features: jax.Array) -> jax.Array:
    features = features.astype(jnp.float32)
    centred = features - jnp.mean(features, axis=0, keepdims=True)
    product = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    return product / (len(features) - 1)


def mmd(source: jax.Array, target: jax.Array) -> jax.Array:
    """Squared maximum mean discrepancy between two batches, under a mean of Gaussian kernels.

        mean_{i != j} k(s_i, s_j) + mean_{i != j} k(t_i, t_j) - 2 mean_{i, j} k(s_i, t_j)
        k(x, y) = 1/5 sum_{u = -2..2} exp(-||x - y||^2 / (2^u m))

    with m the mean of ||x - y||^2 over all pairs of two examples of both batches, taken as a
    constant by the gradient. Batches that are alike are at 0 on average, not each: the estimate
    may be negative.

    The term of DAN (Long et al. 2015, "Learning Transferable Features with Deep Adaptation
    Networks", section 3). The paper takes the unbiased estimate of linear time and fits the weights
    of the kernels. Here it is that of quadratic time (Gretton et al. 2012, "A Kernel Two-Sample
    Test", eq. 3), which varies less and costs little beside a network. Bandwidths: five about the
    mean distance, all of one weight, where the paper spreads more of them about the median.

    Args:
      source: [B, C] features.
      target: [B', C]; B' may differ from B.

    Returns:
      A float32 scalar.

    Raises:
      UserError: a batch has less than two examples.
    """
    _check_batches("dan", source, target)
    both = jnp.concatenate([source, target]).astype(jnp.float32)
    # The distances stay, and round less; examples that are all the same are at exactly 0.
    both -= jax.lax.stop_gradient(both[:1])
    squares = jnp.sum(jnp.square(both), axis=1)
    products = jnp.matmul(both, both.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0)

    count, split = len(both), len(source)
    others = 1 - jnp.eye(count, dtype=jnp.float32)
    mean = jax.lax.stop_gradient(jnp.sum(distances * others) / (count * (count - 1)))
    relative = distances / jnp.where(mean > 0, mean, 1)  # 0: all examples are the same
    kernel = others * sum(jnp.exp(-relative / 2.0**u) for u in range(-2, 3)) / 5

    def within(block: jax.Array) -> jax.Array:
        return jnp.sum(block) / (len(block) * (len(block) - 1))

    across = jnp.mean(kernel[:split, split:])
    return within(kernel[:split, :split]) + within(kernel[split:, split:]) - 2 * across


def _check_batches(method: Method, source: jax.Array, target: jax.Array) -> None:
    if min(len(source), len(target)) < 2:
        raise UserError(
            f"--adapt.method {method} needs at least 2 images of each domain in a batch, "
            f"not {len(source)} and {len(target)}; raise --batch-size"
        )


def mcc(logits: jax.Array, temperature: float) -> jax.Array:
    """How much a classifier confuses its classes on a batch, in [0, 1 - 1/K].

    Minimum class confusion (Jin et al. 2020, "Minimum Class Confusion for Versatile Domain
    Adaptation", section 3):

        p_i = softmax(logits_i / T)                          probability rescaling
        w_i = B (1 + exp(-H(p_i))) / sum_n (1 + exp(-H(p_n)))  uncertainty reweighting
        C_jk = sum_i w_i p_ij p_ik                           class correlation
        loss = 1/K sum_j sum_{k != j} C_jk / sum_l C_jl      category normalisation

    Here it is written in another way. As p_i sums to 1, row j is normalised by sum_i w_i p_ij:

        loss = 1 - 1/K sum_j sum_i a_ij p_ij   with  a_ij = w_i p_ij / sum_n w_n p_nj

    where a_j is a softmax over the batch. This holds for a class that no image gets, where C_j
    would be 0 / 0 in float32, and w needs no common factor. As in the authors' code, no gradient
    goes through w.

    Args:
      logits: [B, K], of images of the target.
      temperature: T, above 0.

    Returns:
      A float32 scalar.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    probabilities = jnp.exp(log_probabilities)
    log_weights = jnp.log(entropy_weights(probabilities))
    shares = jax.nn.softmax(log_weights[:, None] + log_probabilities, axis=0)
    return 1 - jnp.mean(jnp.sum(shares * probabilities, axis=0))
