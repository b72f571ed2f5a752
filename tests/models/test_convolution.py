"""The hand-written weight gradient beside JAX's own, of the plain convolution."""

import jax
import numpy as np
import pytest
from jax import lax

from jxfer.models import convolution
from jxfer.models.convolution import conv_general

# batch, height, width, C_in, C_out, kernel, stride, padding
SHAPES = {
    "3x3 runs of 4": (2, 8, 8, 16, 5, 3, 1, 1),
    "3x3 few channels": (2, 8, 8, 3, 5, 3, 1, 1),
    "3x3 runs of 4, wide": (2, 6, 12, 16, 16, 3, 1, 1),
    "3x3 a single run": (2, 4, 4, 16, 4, 3, 1, 1),
    "3x3 runs of 2": (2, 6, 6, 64, 8, 3, 1, 1),
    "3x3 a single run of 2": (3, 2, 2, 64, 8, 3, 1, 1),
    "3x3 odd width": (2, 7, 7, 4, 6, 3, 1, 1),
    "3x3 width no multiple of 4": (2, 6, 6, 16, 6, 3, 1, 1),
    "3x3 odd width, many channels": (2, 5, 7, 64, 3, 3, 1, 1),
    "3x3 one row": (2, 1, 8, 16, 6, 3, 1, 1),
    "3x3 one pixel": (2, 1, 1, 4, 6, 3, 1, 1),
    "3x3 stride 2": (2, 8, 8, 4, 6, 3, 2, 1),
    "3x3 stride 2, odd": (2, 9, 7, 4, 6, 3, 2, 1),
    "3x3 without padding": (2, 8, 8, 4, 6, 3, 1, 0),
    "1x1": (2, 6, 5, 8, 4, 1, 1, 0),
    "1x1 stride 2": (2, 8, 8, 8, 4, 1, 2, 0),
    "1x1 stride 2, odd": (2, 7, 5, 8, 4, 1, 2, 0),
    "7x7 stride 2": (2, 16, 16, 3, 8, 7, 2, 3),
    "7x7 stride 2, odd": (2, 15, 17, 3, 8, 7, 2, 3),
    "6x6 over the whole map": (2, 6, 6, 4, 8, 6, 1, 0),
}
# batch, height, width, C_in, C_out, kernel, stride, padding, groups
GROUPED = {
    "3x3, 4 groups": (2, 8, 8, 16, 16, 3, 1, 1, 4),
    "3x3 stride 2, 4 groups": (2, 9, 7, 16, 16, 3, 2, 1, 4),
    "3x3, 2 groups in runs of 4": (2, 8, 8, 32, 48, 3, 1, 1, 2),
    "1x1, fewer outputs than inputs": (2, 6, 5, 12, 6, 1, 1, 0, 3),
    "depthwise": (2, 7, 7, 6, 6, 3, 1, 1, 6),
}
SHAPES_GIVEN = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def plain(images, kernel, stride, padding):
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def grouped(groups):
    """The plain convolution and ours, with groups."""

    def plain(images, kernel, stride, padding):
        return convolution.conv_xla(images, kernel, stride, padding, groups)

    def ours(images, kernel, stride, padding):
        return conv_general(images, kernel, stride, padding, groups)

    return plain, ours


def draw(shape):
    b, h, w, c_in, c_out, k, stride, padding = shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=(b, h, w, c_in)).astype(np.float32)
    kernel = rng.normal(size=(k, k, c_in, c_out)).astype(np.float32)
    return images, kernel, stride, padding


def loss_with(conv, weights, stride, padding):
    return lambda images, kernel: (weights * conv(images, kernel, stride, padding)).sum()


@SHAPES_GIVEN
def test_the_forward_pass_is_identical(shape):
    images, kernel, stride, padding = draw(shape)
    ours = conv_general(images, kernel, stride, padding)
    np.testing.assert_array_equal(ours, plain(images, kernel, stride, padding))


def assert_close(found, wanted):
    """To 1e-5 of the largest value: entries near 0 are sums of large terms of both signs."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@SHAPES_GIVEN
def test_both_gradients_are_those_of_the_plain_convolution(shape):
    images, kernel, stride, padding = draw(shape)
    output = plain(images, kernel, stride, padding)
    weights = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    found, wanted = (
        jax.jit(jax.grad(loss_with(conv, weights, stride, padding), (0, 1)))(images, kernel)
        for conv in (conv_general, plain)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("shape", GROUPED.values(), ids=GROUPED)
def test_groups_are_those_of_the_plain_convolution_and_so_are_the_gradients(shape):
    b, h, w, c_in, c_out, k, stride, padding, groups = shape
    images, _, _, _ = draw((b, h, w, c_in, c_out, k, stride, padding))
    kernel = np.random.default_rng(3).normal(size=(k, k, c_in // groups, c_out))
    kernel = kernel.astype(np.float32)
    plain, ours = grouped(groups)
    output = plain(images, kernel, stride, padding)
    assert_close(ours(images, kernel, stride, padding), output)
    weights = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    wanted, found = (
        jax.jit(jax.grad(loss_with(conv, weights, stride, padding), (0, 1)))(images, kernel)
        for conv in (plain, ours)
    )
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA's gradient is used")
def test_on_cpu_no_convolution_computes_the_weight_gradient():
    """The backward pass for the kernel alone is matrix products."""
    images, kernel, stride, padding = draw(SHAPES["3x3 runs of 4"])
    slopes = plain(images, kernel, stride, padding)

    def convolutions(conv):
        def weight_gradient(images, slopes):
            return jax.vjp(lambda k: conv(images, k, stride, padding), kernel)[1](slopes)

        compiled = jax.jit(weight_gradient).lower(images, slopes).compile()
        return compiled.as_text().count(" convolution(")

    assert convolutions(plain) == 1
    # The input's gradient is traced too, and removed by the compiler where nobody wants it.
    assert convolutions(conv_general) == 0


@pytest.mark.slow
def test_vmap_over_images_is_a_loop_over_them():
    images, kernel, stride, padding = draw(SHAPES["3x3 runs of 4"])
    stack = np.stack([images, 2 * images, images[::-1]])

    def kernel_gradient(batch):
        return jax.grad(lambda k: (conv_general(batch, k, stride, padding) ** 2).sum())(kernel)

    assert_close(
        jax.vmap(kernel_gradient)(stack), np.stack([kernel_gradient(batch) for batch in stack])
    )


def test_vmap_over_kernels_is_a_loop_over_them():
    images, kernel, stride, padding = draw(SHAPES["1x1 stride 2"])
    stack = np.stack([kernel, -kernel])

    def image_gradient(kernel):
        return jax.grad(lambda x: (conv_general(x, kernel, stride, padding) ** 2).sum())(images)

    assert_close(jax.vmap(image_gradient)(stack), np.stack([image_gradient(k) for k in stack]))


@pytest.mark.parametrize("name", ["3x3 runs of 4", "3x3 odd width", "1x1 stride 2"])
def test_second_derivatives_by_reverse_over_reverse_are_those_of_the_plain_convolution(name):
    images, kernel, stride, padding = draw(SHAPES[name])
    direction = np.random.default_rng(2).normal(size=kernel.shape).astype(np.float32)

    def hessian_times_direction(conv):
        def slope(k):
            gradient = jax.grad(lambda k: (conv(images, k, stride, padding) ** 4).sum())(k)
            return (gradient * direction).sum()

        return jax.grad(slope)(kernel)

    assert_close(hessian_times_direction(conv_general), hessian_times_direction(plain))


def test_forward_mode_is_refused_with_a_clear_error():
    """So `jax.hessian`, forward over reverse, needs the plain convolution."""
    images, kernel, stride, padding = draw(SHAPES["1x1"])
    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp"):
        jax.jvp(lambda k: conv_general(images, k, stride, padding), (kernel,), (kernel,))


def test_other_backends_use_the_plain_convolution(monkeypatch):
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
    images, kernel, stride, padding = draw(SHAPES["1x1"])
    traced = jax.make_jaxpr(lambda k: conv_general(images, k, stride, padding))(kernel)
    assert "custom_vjp" not in str(traced)
