"""Convolution whose weight gradient is written for XLA's CPU backend.

XLA computes the gradient with respect to the kernel as a convolution with a huge window, which on
CPU runs several times slower than the forward pass. Here it is made of matrix products: for each
kernel position (i, j), with stride s,

    dK[i, j] = sum over b, y, x of padded_input[b, s*y + i, s*x + j, :]^T gradient[b, y, x, :]

The forward pass and the gradient with respect to the input stay XLA's, with one convolution a
group where there are groups: XLA's own groups are several times slower on CPU, and its weight
gradient of a grouped convolution hundreds of times. On other backends XLA's own gradients and
groups are used, which are the fast ones there. `scripts/bench_convolution.py` measures both sides.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_general(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """2-D convolution with the same stride and symmetric zero padding on both axes.

    Args:
      images: [B, H, W, C_in].
      kernel: [kh, kw, C_in / groups, C_out], of the same dtype.
      stride: step in both directions.
      padding: zeros added on each of the four sides.
      groups: the g-th C_out / groups output channels see the g-th C_in / groups input channels.

    Returns:
      [B, H', W', C_out] with H' = (H + 2 * padding - kh) // stride + 1.
    """
    if jax.default_backend() == "cpu":
        return conv_cpu(images, kernel, stride, padding, groups)
    return conv_xla(images, kernel, stride, padding, groups)


def conv_xla(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """`conv_general` with XLA's own groups and gradients."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_cpu(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    """`conv_general` group by group, with the weight gradient written as matrix products.

    Reverse mode, also twice, and `vmap` work; forward mode raises JAX's error for custom_vjp.
    """
    return _by_groups(images, kernel, stride, padding, groups)


def _by_groups(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
    """A convolution a group. Written out: in a loop XLA does not take its fast path."""
    if groups == 1:
        return conv_xla(images, kernel, stride, padding)
    parts = zip(jnp.split(images, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([conv_xla(*part, stride, padding) for part in parts], -1)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_groups(images, kernel, stride, padding, groups), (images, kernel)


# Inlined under `jax.jit` it is traced once for each shape, as the norms are; see `layers`.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _backward(
    stride: int,
    padding: int,
    groups: int,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    _, pull_back = jax.vjp(lambda x: _by_groups(x, kernel, stride, padding, groups), images)
    (images_gradient,) = pull_back(gradient)
    shape = (*kernel.shape[:3], kernel.shape[3] // groups)
    if groups == 1:
        return images_gradient, _kernel_gradient(images, gradient, shape, stride, padding)

    def of_group(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _kernel_gradient(*pair, shape, stride, padding)

    # A loop: written out, hundreds of products a layer take the compiler seconds.
    by_group = lax.map(of_group, (_groups_first(images, groups), _groups_first(gradient, groups)))
    return images_gradient, jnp.moveaxis(by_group, 0, 3).reshape(kernel.shape)


conv_cpu.defvjp(_forward, _backward)


def _groups_first(x: jax.Array, groups: int) -> jax.Array:
    """[B, H, W, groups * C] -> [groups, B, H, W, C]."""
    return jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)


def _kernel_gradient(
    images: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    stride: int,
    padding: int,
) -> jax.Array:
    c_in = kernel_shape[2]
    run = 4 if c_in < 64 else 2
    is_3x3 = kernel_shape[:2] == (3, 3) and (stride, padding) == (1, 1)
    if is_3x3 and c_in >= 16 and images.shape[2] % run == 0:
        total = _kernel_gradient_3x3(images, gradient, run)
    else:
        total = _kernel_gradient_by_shifts(images, gradient, kernel_shape, stride, padding)
    return total.astype(images.dtype)  # once: the products are summed in float32


def _kernel_gradient_by_shifts(
    images: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    stride: int,
    padding: int,
) -> jax.Array:
    """One product [C_in, B*H*W] @ [B*H*W, C_out] for each kernel position."""
    kh, kw, c_in, c_out = kernel_shape
    b, h, w, _ = gradient.shape
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, pads)
    rows = gradient.reshape(b * h * w, c_out)
    products = []
    for i in range(kh):
        for j in range(kw):
            last = (b, i + (h - 1) * stride + 1, j + (w - 1) * stride + 1, c_in)
            shifted = lax.slice(padded, (0, i, j, 0), last, (1, stride, stride, 1))
            products.append(_transposed_product(shifted, rows))
    return jnp.stack(products).reshape(kh, kw, c_in, c_out)


def _kernel_gradient_3x3(images: jax.Array, gradient: jax.Array, run: int) -> jax.Array:
    """Stride 1, padding 1, with runs of `run` neighbouring pixels as one row of a matrix.

    Few channels make thin matrices, which multiply slowly. Read as [.., W / run, run * C], the
    images and the three vertical shifts of the gradient make one wide product that holds every
    pair of pixels within a run; of these, the pairs at most one column apart belong to the kernel.
    Pairs across two runs come from two thin products over the runs' edges.
    """
    b, h, w, c_in = images.shape
    c_out = gradient.shape[-1]
    runs = images.reshape(b, h, w // run, run * c_in)
    padded = jnp.pad(
        gradient.reshape(b, h, w // run, run * c_out), ((0, 0), (1, 1), (0, 0), (0, 0))
    )
    shifts = jnp.concatenate([padded[:, 2 - i : 2 - i + h] for i in range(3)], -1)

    # [input pixel of the run, C_in, kernel row, output pixel of the run, C_out]
    within = _transposed_product(runs, shifts).reshape(run, c_in, 3, run, c_out)
    outputs = shifts.reshape(b, h, w // run, 3, run, c_out)
    before = _transposed_product(
        runs[:, :, :-1, -c_in:], outputs[:, :, 1:, :, 0].reshape(b, h, -1, 3 * c_out)
    ).reshape(c_in, 3, c_out)
    after = _transposed_product(
        runs[:, :, 1:, :c_in], outputs[:, :, :-1, :, -1].reshape(b, h, -1, 3 * c_out)
    ).reshape(c_in, 3, c_out)
    left = before + sum(within[i - 1, :, :, i] for i in range(1, run))
    centre = sum(within[i, :, :, i] for i in range(run))
    right = after + sum(within[i + 1, :, :, i] for i in range(run - 1))
    return jnp.stack([left, centre, right]).transpose(2, 0, 1, 3)  # [row, column, C_in, C_out]


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., M], [..., N] -> [M, N] float32, summed over all leading axes."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
