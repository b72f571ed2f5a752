"""The objective of a linear classifier: softmax regression, or linear SVMs one against rest.

Before `solver` in the flow. At one strength, over a kernel W [D, K] and a bias b [K], it is

    sum_i w_i loss(W^T z_i + b, y_i) / sum_i w_i + strength / 2 * (|W|^2 + p |b|^2)

where z_i are the standardised features of example i and w_i is its weight. The softmax loss is the
cross-entropy, with p = 0. The SVMs' loss is the sum over the classes k of the squared hinge
max(0, 1 - s_k f_k)^2, where s_k is 1 for the example's class and -1 for another, with p = 1.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Kind = Literal["softmax", "svm"]


class Objective(NamedTuple):
    """What is minimised, but for the strength."""

    kind: Kind
    inputs: jax.Array
    """[N, R + 1]"""
    one_hot: jax.Array
    """[K, N]"""
    weights: jax.Array
    """[N], their sum is 1"""
    variances: jax.Array
    """[R + 1], of the inputs"""

    @property
    def penalised(self) -> jax.Array:
        """[R + 1], 1 for a weight that the penalty sees; p for the bias."""
        of_bias = 0.0 if self.kind == "softmax" else 1.0
        return jnp.ones_like(self.variances).at[-1].set(of_bias)

    def loss(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean loss, its derivative by the logits [K, N])."""
        function = _softmax_loss if self.kind == "softmax" else _squared_hinge_loss
        losses, derivative = function(logits, self.one_hot)
        return losses @ self.weights, derivative * self.weights[None]

    def curvature(self, logits: jax.Array) -> jax.Array:
        """[K], the mean second derivative of the loss by a class's logit."""
        if self.kind == "softmax":
            probabilities = jax.nn.softmax(logits, axis=0)
            return (probabilities * (1 - probabilities)) @ self.weights
        return 2 * (_slack(logits, self.one_hot) > 0) @ self.weights


def _softmax_loss(logits: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy [N] and its derivative [K, N].

    Both come from the probability of the other classes, which keeps its digits where it is small.
    """
    shifted = logits - logits.max(axis=0)[None]
    exponentials = jnp.exp(shifted)
    total = exponentials.sum(axis=0)
    others = jnp.where(one_hot > 0, 0, exponentials / total[None])
    wrong = others.sum(axis=0)
    small = -jnp.log1p(-jnp.minimum(wrong, 0.5))
    large = jnp.log(total) - jnp.sum(shifted * one_hot, axis=0)
    return jnp.where(wrong < 0.5, small, large), others - one_hot * wrong[None]


def _squared_hinge_loss(logits: jax.Array, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared hinge losses of the K classifiers, summed [N], and the derivative [K, N]."""
    slack = _slack(logits, one_hot)
    return jnp.sum(jnp.square(slack), axis=0), 2 * slack * (1 - 2 * one_hot)


def _slack(logits: jax.Array, one_hot: jax.Array) -> jax.Array:
    return jnp.maximum(0, 1 + (1 - 2 * one_hot) * logits)
