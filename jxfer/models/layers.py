"""Layers that the families share: convolution, norm, pooling, dropout, fully connected.

After `convolution` and `initialise`, before the families. Paddings, BatchNorm's epsilon and the
poolings follow PyTorch, so that ported weights give the same numbers: symmetric padding (`SAME`
differs at stride 2) and a max-pool padded with -inf.

A layer that behaves differently in training finds its own path in `train_layers`; every other one
runs as in evaluation.

A layer computes in the dtype of its input and returns it: parameters and statistics are float32,
and each layer casts its own.
"""

import functools
import zlib
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jxfer.errors import UserError
from jxfer.models.convolution import conv_general
from jxfer.models.initialise import declared

TrainLayers = frozenset[str]
NORM_EPSILON = 1e-5
"""Added to the variance by every norm, PyTorch's."""
NORM_MOMENTUM = 0.9
"""Share of the old running average that a norm in train mode keeps; PyTorch's momentum of 0.1."""
NORM_INPUTS = "norm_inputs"
"""Collection of what each norm sees, filled where the caller makes it mutable."""


class Window(NamedTuple):
    """What one output of a convolution or pooling sees, in positions of its input."""

    size: int
    stride: int
    padding: int


class Conv(nn.Module):
    """Convolution, padded symmetrically as PyTorch does. [B, H, W, C] -> same rank.

    Attributes:
      padding: zeros on each side; None keeps the size at stride 1.
      groups: each group of output channels sees its own C / groups input channels.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", declared, shape, jnp.float32)
        padding = self.kernel_size // 2 if self.padding is None else self.padding
        x = conv_general(x, kernel.astype(x.dtype), self.stride, padding, self.groups)
        if self.use_bias:
            x = _add_bias(x, self.param("bias", declared, (self.features,), jnp.float32))
        return x


class Norm(nn.Module):
    """BatchNorm (Ioffe & Szegedy 2015) that asks by its path whether it trains.

    A layer whose path is in `train_layers` normalises by the batch and moves its running averages
    (which keep 0.9 of the old value, PyTorch's momentum of 0.1); every other layer runs on its
    stored averages. `axis_name` synchronises the batch's moments over devices. Moments and the
    normalisation are float32 for inputs of any dtype.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train_layers: TrainLayers) -> jax.Array:
        self.sow(NORM_INPUTS, "x", x)
        shape = (x.shape[-1],)
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        stored_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = stored_mean.value, stored_var.value
        if "/".join(self.path) in train_layers:
            starting = self.is_initializing()
            mean, var = _moments(x, None if starting else self.axis_name)
            if not starting:
                stored_mean.value = _moved(stored_mean.value, mean)
                stored_var.value = _moved(stored_var.value, var)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return _normalised(x, mean, var, scale, bias)


# In place of `nn.BatchNorm`, whose program this is to the letter: inlined into what calls it, a
# function under `jax.jit` is traced once for each shape, not for each norm of that shape.
_inlined = functools.partial(jax.jit, inline=True)


@functools.partial(_inlined, static_argnames="axis_name")
def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [C], float32, over all axes of `x` but the last, and over devices.

    The variance is E[x^2] - E[x]^2, which takes one pass over `x`.
    """
    x = x.astype(jnp.float32)
    square, axes = lax.square(x), tuple(range(x.ndim - 1))
    mean, mean_square = x.mean(axes), square.mean(axes)
    if axis_name is not None:
        mean, mean_square = lax.pmean(jnp.stack([mean, mean_square]), axis_name)
    return mean, jnp.maximum(0.0, mean_square - lax.square(mean))  # rounding may go below 0


@_inlined
def _moved(average: jax.Array, moment: jax.Array) -> jax.Array:
    return NORM_MOMENTUM * average + (1 - NORM_MOMENTUM) * moment


@_inlined
def _normalised(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """`x` [..., C], normalised in float32 by moments [C], in its own dtype."""
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.expand_dims(mean, axes), jnp.expand_dims(var, axes)
    y = x - mean
    y *= lax.rsqrt(var + NORM_EPSILON) * scale.reshape(mean.shape)
    y += bias.reshape(mean.shape)
    return y.astype(x.dtype)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014), scaled in training so that evaluation is the identity.

    A layer whose path is in `train_layers` drops each value with probability `rate` and divides
    the others by 1 - rate. The mask of an example is drawn from its own key and the layer's path:
    it does not depend on what else is in the batch or on the device that holds it.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        """Drops values of `x` [B, ...]; `keys` [B] holds a typed PRNG key an example.

        Raises:
          ValueError: the layer trains and has no keys.
        """
        if not self.rate:
            return x
        # Seen by `init` alone: how `Model.dropout_paths` finds the layer.
        self.sow("dropout", "rate", jnp.float32(self.rate))
        path = "/".join(self.path)
        if path not in train_layers:
            return x
        if keys is None:
            raise ValueError(f"{path} is in train mode and needs a key for each example")

        def mask(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            return jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), 0)


class Dense(nn.Module):
    """A fully connected layer over vectors. [B, C] -> [B, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", declared, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", declared, (self.features,), jnp.float32)
        return _add_bias(x @ kernel.astype(x.dtype), bias)


class FullyConnected(nn.Module):
    """A fully connected layer over a map, stored as the convolution that it is, then ReLU.

    Its kernel is [side, side, C, features]. On a map of exactly that side, or on vectors where the
    side is 1, the layer is one matrix product.

    Attributes:
      rate: of the dropout, whose path is the layer's own plus `/dropout`.
      drops: what the dropout acts on, the layer's input or its output after ReLU.
      dense: slide over a map of at least `side`: [B, h, w, C] -> [B, h', w', features].
    """

    features: int
    side: int
    rate: float
    drops: Literal["input", "output"]
    dense: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train_layers: TrainLayers, keys: jax.Array | None
    ) -> jax.Array:
        """[B, side, side, C] (or [B, C] where the side is 1) -> [B, features]."""
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", declared, shape, jnp.float32)
        bias = self.param("bias", declared, (self.features,), jnp.float32)
        dropout = Dropout(self.rate, name="dropout")
        if self.drops == "input":
            x = dropout(x, train_layers, keys)
        if self.dense:
            check_window(x, self.side)
            y = conv_general(x, kernel.astype(x.dtype), 1, 0)
        else:
            y = x.reshape(x.shape[0], -1) @ kernel.astype(x.dtype).reshape(-1, self.features)
        y = nn.relu(_add_bias(y, bias))
        return dropout(y, train_layers, keys) if self.drops == "output" else y


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Largest value of each window; [B, H, W, C] -> same rank, sizes rounded down."""
    pads = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=pads)


def halving_pool(x: jax.Array) -> jax.Array:
    """Mean of each 2x2 window at stride 2; a window over an odd edge counts the pixels it has.

    PyTorch's `AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)`.
    """
    pads = tuple((0, side % 2) for side in x.shape[1:3])
    means = nn.avg_pool(x, (2, 2), strides=(2, 2), padding=pads, count_include_pad=False)
    return means.astype(x.dtype)  # Linen's counts are float32


def adaptive_pool(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, side, side, C], the identity where H and W are `side`.

    PyTorch's `AdaptiveAvgPool2d`: output i is the mean of rows floor(i * H / side) up to, without,
    ceil((i + 1) * H / side), and so for columns. Windows overlap where `side` does not divide H,
    and repeat where H is smaller.
    """
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (_window_means(size, side) for size in x.shape[1:3])
    means = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=lax.Precision.HIGHEST)
    return means.astype(x.dtype)  # computed in float32


def _window_means(size: int, windows: int) -> np.ndarray:
    """[windows, size]: row i takes the mean over window i."""
    means = np.zeros((windows, size), np.float32)
    for i in range(windows):
        start, end = i * size // windows, -(-(i + 1) * size // windows)
        means[i, start:end] = 1 / (end - start)
    return means


def mean_pool(x: jax.Array, window: int | None = None) -> jax.Array:
    """Mean over positions, or over each `window` x `window` of them at stride 1.

    Args:
      x: [B, H, W, C].
      window: None for all positions.

    Returns:
      [B, C], or [B, H - window + 1, W - window + 1, C].
    """
    if window is None:
        return jnp.mean(x, axis=(1, 2))
    check_window(x, window)
    return nn.avg_pool(x, (window, window), strides=(1, 1))


def check_window(x: jax.Array, window: int) -> None:
    """Refuses a map [B, H, W, C] on which a `window` x `window` classifier has no place.

    Raises:
      UserError: H or W is smaller than the window.
    """
    height, width = x.shape[1:3]
    if min(height, width) < window:
        raise UserError(
            f"the image is too small: its last map is {height}x{width}, and the classifier covers "
            f"{window}x{window} positions; give images of at least the training size"
        )


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    # In float32, since the bias's gradient is a sum over all positions in the same dtype.
    sums = x.astype(jnp.float32) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return sums.astype(x.dtype)
