"""FLOPs by layer, beside what XLA counts for the same operation."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jxfer import trees
from jxfer.models import registry
from jxfer.models.convolution import conv_xla
from jxfer.train import flops


def named(function):
    """The function inside the scope of a layer, as flax opens one for each module."""

    def scoped(*arguments):
        with jax.named_scope("stage1"), jax.named_scope("conv1"):
            return function(*arguments)

    return scoped


def by_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "groups"),
    [(9, 3, 1, 1, 1), (9, 3, 2, 1, 1), (8, 1, 2, 0, 1), (11, 7, 2, 3, 1), (8, 3, 1, 1, 4)],
)
def test_a_convolution_and_its_gradients_cost_what_xla_counts(
    side, kernel, stride, padding, groups
):
    images, kernels = shape(2, side, side, 8), shape(kernel, kernel, 8 // groups, 12)

    def forward(images, kernels):
        return conv_xla(images, kernels, stride, padding, groups)

    def both(images, kernels, gradient):
        return jax.vjp(forward, images, kernels)[1](gradient)

    gradient = jax.eval_shape(forward, images, kernels)
    counted = flops.by_layer(named(forward), (images, kernels), ["stage1/conv1"])
    assert counted == {("stage1/conv1", False): by_xla(forward, images, kernels)}
    counted = flops.by_layer(named(both), (images, kernels, gradient), ["stage1/conv1"])
    assert counted == {("stage1/conv1", True): by_xla(both, images, kernels, gradient)}


def test_a_product_costs_two_for_each_pair():
    product = named(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))
    counted = flops.by_layer(product, (shape(2, 3, 5), shape(2, 5, 7)), ["stage1/conv1"])
    assert counted == {("stage1/conv1", False): 2 * (2 * 3 * 7) * 5}


def test_a_loop_costs_as_often_as_it_runs():
    def function(a, b):
        return lax.map(lambda part: part @ b, a)

    counted = flops.by_layer(named(function), (shape(4, 3, 5), shape(5, 7)), ["stage1/conv1"])
    assert counted == {("stage1/conv1", False): 4 * (2 * 3 * 5 * 7)}


def test_what_no_result_needs_costs_nothing():
    def first(a, b):
        return named(lambda a, b: (a + 1, a @ b))(a, b)[0]

    assert flops.by_layer(first, (shape(3, 5), shape(5, 7)), ["stage1/conv1"]) == {}


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnet20", 32), ("resnet50", 64), ("resnet18d", 64), ("vgg11_bn", 32), ("alexnet", 63)],
)
def test_every_layer_with_a_kernel_is_found_in_each_family(arch, size):
    model = registry.create(arch, 3)
    kernels = {
        path.rpartition("/")[0]: leaf.shape
        for path, leaf in trees.flatten(model.shapes()["params"]).items()
        if path.endswith("kernel")
    }
    counted = flops.by_layer(model.apply, (model.shapes(), shape(2, size, size, 3)), kernels)
    assert set(counted) == {(layer, False) for layer in kernels}
    assert counted["head/linear", False] == 2 * 2 * math.prod(kernels["head/linear"])
