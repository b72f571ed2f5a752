"""The regularisation path of a linear classifier, in one compiled call.

After `objective`, before `linear`. Four things make it fast; none of them moves the minimum.
- The features are rotated onto the eigenvectors of their covariance, which the penalty does not
  see; with fewer examples than features only as many directions as examples are kept.
- In that basis the Hessian is nearly diagonal: the loss's curvature times the eigenvalue, plus the
  strength. L-BFGS works on variables scaled by the root of that.
- The logits are linear in the length of the step, so a line search takes no product with the
  features.
- A strength starts at the last minimum, moved on by as much as the last strength moved it, if that
  is lower than the last minimum itself.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jxfer.probe.objective import Kind, Objective

_MEMORY = 10  # pairs of steps and gradients that L-BFGS keeps
_SLOPE = 0.5  # a line search ends where the slope is at most this part of what it was
_LINE_SEARCH = 20  # evaluations of a line search at most
_ROUNDING = 1e-6  # relative; a value that grows by less has not grown


class Examples(NamedTuple):
    """A split. The features of examples of weight 0 are not looked at, but must be finite."""

    features: jax.Array
    """float32 [N, D]"""
    labels: jax.Array
    """int32 [N]"""
    weights: jax.Array
    """float32 [N]"""


class Solution(NamedTuple):
    """A path in the order of its strengths, and the classifier that was picked."""

    kernel: jax.Array
    """[D, K], for standardised features"""
    bias: jax.Array
    """[K]"""
    mean: jax.Array
    """[D], of the training features"""
    inverse_std: jax.Array
    """[D], 0 for a feature that is constant over the training examples"""
    picked: jax.Array
    """index into the strengths"""
    objective: jax.Array
    """[S], the minimum"""
    correct: jax.Array
    """[S], the summed weight of the validation examples that are classified correctly"""
    iterations: jax.Array
    """[S], of L-BFGS"""
    converged: jax.Array
    """[S], whether the tolerance was met"""


@functools.partial(jax.jit, static_argnames=("kind", "classes"))
def solve_path(
    train: Examples,
    val: Examples,
    strengths: jax.Array,
    pick: jax.Array,
    tolerance: jax.Array,
    max_iterations: jax.Array,
    *,
    kind: Kind,
    classes: int,
) -> Solution:
    """Minimises at each strength in turn.

    Args:
      train: what is fitted.
      val: what picks, by the weight of its correct examples; at a tie the first strength.
      strengths: float32 [S], from strong to weak.
      pick: index of the strength to take; -1 leaves it to `val`.
      tolerance: a strength is done when half the squared norm of the gradient by the scaled
        variables is at most this part of the objective. Where the scaling is the true Hessian's,
        that is the relative distance to the minimum.
      max_iterations: of L-BFGS, per strength.
      kind: the loss.
      classes: K.
    """
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 products else
        train = train._replace(weights=train.weights / train.weights.sum())
        mean, inverse_std = _moments(train)
        standard = _standardise(train, mean, inverse_std)
        rotation, variances = _principal_directions(standard, train.weights)
        objective = Objective(
            kind,
            _with_ones(standard @ rotation, train.weights),
            (train.labels[None] == jnp.arange(classes)[:, None]).astype(jnp.float32),
            train.weights,
            jnp.append(variances, 1),
        )
        standard = _standardise(val, mean, inverse_std)
        val_inputs = _with_ones(standard @ rotation, val.weights)

        def solve(carry: tuple, strength: jax.Array) -> tuple[tuple, tuple]:
            last, before, best, index = carry
            end, iterations, converged = _minimise(
                objective, strength, (last, 2 * last - before), tolerance, max_iterations
            )
            hits = jnp.argmax(end.weights @ val_inputs.T, axis=0) == val.labels
            correct = jnp.sum(val.weights * hits)
            better = jnp.where(pick < 0, correct > best[1], index == pick)
            best = jax.tree.map(
                functools.partial(jnp.where, better), (index, correct, end.weights), best
            )
            path = (end.value, correct, iterations, converged)
            return (end.weights, last, best, index + 1), path

        zeros = jnp.zeros((classes, variances.size + 1))
        none = (jnp.int32(-1), jnp.float32(-1), zeros)
        (_, _, best, _), path = jax.lax.scan(solve, (zeros, zeros, none, jnp.int32(0)), strengths)
        picked, _, weights = best
        kernel = rotation @ weights[:, :-1].T
        return Solution(kernel, weights[:, -1], mean, inverse_std, picked, *path)


def _moments(examples: Examples) -> tuple[jax.Array, jax.Array]:
    """(mean, inverse standard deviation) of the features, each [D]; the weights sum to 1.

    Both come from positions in the feature's range, 0 to 1: a mean of float32 values is off by more
    than a feature that hardly varies, and squares of large or small ones leave float32.
    """
    used = examples.weights[:, None] > 0
    low = jnp.where(used, examples.features, jnp.inf).min(axis=0)
    width = jnp.where(used, examples.features, -jnp.inf).max(axis=0) - low
    constant = width == 0
    width = jnp.where(constant, 1, width)
    position = jnp.where(used, (examples.features - low[None]) / width[None], 0)
    mean = examples.weights @ position
    std = jnp.sqrt(examples.weights @ jnp.square(position - mean[None]))
    inverse_std = 1 / (jnp.where(constant, 1, std) * width)
    return low + mean * width, jnp.where(constant, 0, inverse_std)


def _standardise(examples: Examples, mean: jax.Array, inverse_std: jax.Array) -> jax.Array:
    """[N, D], 0 for examples of weight 0."""
    standard = (examples.features - mean[None]) * inverse_std[None]
    return jnp.where(examples.weights[:, None] > 0, standard, 0)


def _principal_directions(inputs: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(orthonormal columns [D, R], the variance along each [R]), R the lesser of N and D."""
    rotation = jnp.eye(inputs.shape[1])
    if inputs.shape[0] < inputs.shape[1]:
        rotation, _ = jnp.linalg.qr(inputs.T)
        inputs = inputs @ rotation
    variances, vectors = jnp.linalg.eigh((inputs * weights[:, None]).T @ inputs)
    return rotation @ vectors, jnp.maximum(variances, 0)


def _with_ones(inputs: jax.Array, weights: jax.Array) -> jax.Array:
    """[N, R + 1]; the input of the bias comes last."""
    return jnp.concatenate([inputs, (weights[:, None] > 0).astype(jnp.float32)], axis=1)


class _Point(NamedTuple):
    weights: jax.Array
    """[K, R + 1]"""
    logits: jax.Array
    """[K, N]"""
    value: jax.Array
    gradient: jax.Array
    """[K, R + 1]"""


def _minimise(
    objective: Objective,
    strength: jax.Array,
    starts: tuple[jax.Array, jax.Array],
    tolerance: jax.Array,
    max_iterations: jax.Array,
) -> tuple[_Point, jax.Array, jax.Array]:
    """(where it ends, iterations, whether the tolerance was met), from the lower of two starts."""
    penalty = strength * objective.penalised[None]
    lbfgs = optax.scale_by_lbfgs(memory_size=_MEMORY)

    def norm(weights: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(penalty * jnp.square(weights))

    def value_at(weights: jax.Array) -> tuple[_Point, jax.Array]:
        logits = weights @ objective.inputs.T
        value, derivative = objective.loss(logits)
        return _Point(weights, logits, value + norm(weights), jnp.zeros_like(weights)), derivative

    def gradient(weights: jax.Array, derivative: jax.Array) -> jax.Array:
        return derivative @ objective.inputs + penalty * weights

    points, derivatives = jax.lax.map(value_at, jnp.stack(starts))
    lower = jnp.argmin(points.value)
    start, derivative = jax.tree.map(lambda both: both[lower], (points, derivatives))
    start = start._replace(gradient=gradient(start.weights, derivative))
    curvature = jnp.maximum(objective.curvature(start.logits), 1e-6)
    scale = jax.lax.rsqrt(curvature[:, None] * objective.variances[None] + penalty)

    def met(point: _Point) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(scale * point.gradient)) <= tolerance * point.value

    def unfinished(state: tuple) -> jax.Array:
        point, _, iterations, stuck = state
        return ~met(point) & ~stuck & (iterations < max_iterations)

    def iterate(state: tuple) -> tuple:
        point, memory, iterations, _ = state
        step, memory = lbfgs.update(scale * point.gradient, memory, point.weights / scale)
        direction = -scale * step
        logits_direction = direction @ objective.inputs.T

        def along(length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """(value, slope, derivative by the logits)."""
            weights = point.weights + length * direction
            value, derivative = objective.loss(point.logits + length * logits_direction)
            slope = jnp.sum(derivative * logits_direction) + jnp.sum(penalty * weights * direction)
            return value + norm(weights), slope, derivative

        slope = jnp.sum(point.gradient * direction)
        length, value, derivative, found = _line_search(along, point.value, slope)
        weights = point.weights + length * direction
        moved = _Point(
            weights,
            point.logits + length * logits_direction,
            value,
            gradient(weights, derivative),
        )
        point = jax.tree.map(functools.partial(jnp.where, found), moved, point)
        return point, memory, iterations + 1, ~found

    state = (start, lbfgs.init(start.weights), jnp.int32(0), jnp.bool_(False))
    point, _, iterations, _ = jax.lax.while_loop(unfinished, iterate, state)
    return point, iterations, met(point)


def _line_search(
    along: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    value0: jax.Array,
    slope0: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(length, value, derivative by the logits, found): a strong Wolfe point of a convex function.

    The minimum is bracketed by the sign of the slope; a new length is the secant's, kept inside
    the bracket. `found` is False where rounding leaves nothing to gain.
    """
    _, _, derivative = jax.eval_shape(along, value0)

    def searching(state: tuple) -> jax.Array:
        *_, tries, good = state
        return ~good & (tries < _LINE_SEARCH)

    def search(state: tuple) -> tuple:
        _, _, _, length, low, slope_low, high, tries, _ = state
        value, slope, derivative = along(length)
        descended = (slope <= 0) | (value <= value0 * (1 + _ROUNDING))
        good = (jnp.abs(slope) <= _SLOPE * jnp.abs(slope0)) & descended
        secant = length - slope * (length - low) / (slope - slope_low)
        short = slope < 0
        low, slope_low = jnp.where(short, length, low), jnp.where(short, slope, slope_low)
        high = jnp.where(short, high, length)
        margin = 0.05 * (high - low)
        inside = jnp.clip(secant, low + margin, high - margin)
        outside = jnp.clip(secant, 1.5 * length, 10 * length)
        following = jnp.where(jnp.isfinite(high), inside, outside)
        return value, derivative, length, following, low, slope_low, high, tries + 1, good

    state = (
        value0,
        jnp.zeros(derivative.shape),
        jnp.float32(0),
        jnp.float32(1),
        jnp.float32(0),
        slope0,
        jnp.float32(jnp.inf),
        jnp.int32(0),
        jnp.bool_(False),
    )
    value, derivative, length, *_, good = jax.lax.while_loop(searching, search, state)
    lower = (slope0 < 0) & jnp.isfinite(value) & (value <= value0 * (1 + _ROUNDING))
    return length, value, derivative, lower & (good | (value < value0))
