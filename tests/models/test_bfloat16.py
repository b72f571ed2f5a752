"""Compute in bfloat16: the dtype of every tensor, and how near it comes to float32.

bfloat16 keeps 8 bits: rounding a number moves it by at most 2^-8 of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.data.transforms import normalise
from jxfer.models import convolution, registry
from jxfer.models.heads import HeadConfig
from jxfer.models.layers import Conv, Dense, adaptive_pool, halving_pool
from jxfer.zoo import store, zoos

ROUNDING = 2.0**-8
KEY = jax.random.key(0)


def in_bfloat16(*args, **kwargs):
    return dataclasses.replace(registry.create(*args, **kwargs), compute_dtype="bfloat16")


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet20", HeadConfig()),
        ("resnet20_b", HeadConfig("mlp", (8,), dropout=0.5)),
        ("resnet18d", HeadConfig("conv", (8,))),
        ("resnext50_32x4d", HeadConfig()),
        ("alexnet", HeadConfig()),
        ("vgg11_bn", HeadConfig()),
    ],
)
def test_activations_are_bfloat16_and_logits_and_all_that_is_kept_float32(arch, head):
    model = in_bfloat16(arch, 5, head=head)
    image = jax.ShapeDtypeStruct((2, 95, 95, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    train = frozenset({*model.norm_paths(), *model.dropout_paths()})
    for layers in (frozenset(), train):
        outputs, batch_stats = jax.eval_shape(
            lambda v, x, k, layers=layers: model.apply(v, x, layers, k), model.shapes(), image, keys
        )
        assert {name: leaf.dtype for name, leaf in outputs.items()} == {
            **dict.fromkeys((*model.stages, "pooled"), jnp.bfloat16),
            "logits": jnp.float32,
        }
        assert {leaf.dtype for leaf in jax.tree.leaves(batch_stats)} <= {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(model.init(0))} == {np.dtype(np.float32)}
    # Nothing in between went through float32 convolutions or products, but the last layer.
    program = str(
        jax.make_jaxpr(lambda v, x, k: model.apply(v, x, train, k)[0])(model.shapes(), image, keys)
    )
    products = [line for line in program.splitlines() if "conv_general_dilated[" in line]
    assert products
    assert all(":bf16[" in line for line in products)


def test_the_poolings_keep_the_dtype():
    x = jnp.ones((2, 7, 7, 3), jnp.bfloat16)
    assert adaptive_pool(x, 3).dtype == halving_pool(x).dtype == jnp.bfloat16


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", [8, 7], ids=["runs", "shifts"])
def test_the_weight_gradient_is_summed_in_float32(side, groups):
    """4,608 terms: summed in bfloat16 they would be wrong by tens of per cent, not by a rounding.

    The reference is float64 NumPy on the same rounded inputs.
    """
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.5, 1, (72, side, side, 32)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 32 // groups, 4)), jnp.bfloat16)

    def total(kernel):
        return jnp.sum(convolution.conv_cpu(images, kernel, 1, 1, groups).astype(jnp.float32))

    found = jax.jit(jax.grad(total))(kernel)
    assert found.dtype == jnp.bfloat16
    padded = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = [
        [padded[:, i : i + side, j : j + side].sum((0, 1, 2)) for j in range(3)] for i in range(3)
    ]  # the gradient of a sum: the same for each output channel
    by_group = np.asarray(sums).reshape(3, 3, groups, 32 // groups).transpose(0, 1, 3, 2)
    wanted = np.repeat(by_group, 4 // groups, -1)
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=1.001 * ROUNDING)


@pytest.mark.parametrize("layer", [Conv(2, 1, use_bias=True), Dense(2)], ids=["conv", "dense"])
def test_the_gradient_of_a_bias_is_summed_in_float32(layer):
    """10,001 ones: bfloat16 cannot hold the sum; nearest are 9,984 and 10,048."""
    x = jnp.ones((10_001, 1, 1, 3) if isinstance(layer, Conv) else (10_001, 3), jnp.bfloat16)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(layer.init, KEY, x))

    def total(variables):
        return jnp.sum(layer.apply(variables, x).astype(jnp.float32))

    assert layer.apply(variables, x).dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(total))(variables)["params"]["bias"]
    np.testing.assert_array_equal(gradient, [10_001, 10_001])


def test_a_shipped_networks_logits_are_near_those_in_float32():
    """Each of ResNet-20's 19 convolutions rounds its kernel, its output and that of its norm.

    A rounding moves a number by at most 2^-8 of it, 2^-8 / sqrt(3) in the mean square. The
    roundings are independent, so 57 of them add up to sqrt(57 / 3) * 2^-8 = 1.7 % of the norm, less
    what the mean over positions evens out. The head's layer is float32 and adds nothing.
    """
    card, variables = store.load(zoos.resolve("resnet20-cifar100"))
    model = store.build(card)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 8, 8, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    images = normalise(pixels, card.preprocessing)
    exact, rounded = (
        jax.jit(lambda v, x, m=m: m.apply(v, x)[0]["logits"])(variables, images)
        for m in (model, dataclasses.replace(model, compute_dtype="bfloat16"))
    )
    assert exact.dtype == rounded.dtype == np.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0.1 * ROUNDING < error < np.sqrt(57 / 3) * ROUNDING
