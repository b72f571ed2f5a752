"""The shared layers: norms beside Flax's, poolings beside PyTorch's, and what dropout drops."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from jxfer.errors import UserError
from jxfer.models import layers

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def as_torch(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def as_numpy(maps):
    return maps.numpy().transpose(0, 2, 3, 1)


class Norms(nn.Module):
    """Two norms, the first of which trains."""

    flax: bool

    @nn.compact
    def __call__(self, x, train_layers):
        for name in ("first", "second"):
            if self.flax:
                average = name not in train_layers
                settings = {"momentum": layers.NORM_MOMENTUM, "epsilon": layers.NORM_EPSILON}
                x = nn.BatchNorm(average, **settings, dtype=x.dtype, axis_name="d", name=name)(x)
            else:
                x = layers.Norm(axis_name="d", name=name)(x, train_layers)
        return x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_are_the_program_of_flaxs(dtype):
    images, layer = draw(1, 4, 5, 5, 6).astype(dtype), frozenset({"first"})
    programs, variables = [], []
    for flax in (True, False):
        norms = Norms(flax)

        def step(variables, x, norms=norms):
            def loss(params):
                stored = {"params": params, "batch_stats": variables["batch_stats"]}
                y, moved = norms.apply(stored, x, layer, mutable=["batch_stats"])
                return (y * y).sum().astype("float32"), moved

            return jax.grad(loss, has_aux=True)(variables["params"])

        started = norms.init(jax.random.key(0), images[0], layer)
        started = {name: started[name] for name in ("params", "batch_stats")}
        mapped = jax.jit(jax.vmap(step, (None, 0), axis_name="d"))
        programs.append(mapped.lower(started, images).as_text())
        variables.append(started)
    assert programs[0] == programs[1]
    jax.tree.map(np.testing.assert_array_equal, *variables)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2), (3, 5), (7, 7), (8, 6), (9, 13), (14, 20), (15, 7)]
)
@pytest.mark.parametrize("side", [6, 7])
def test_adaptive_pooling_is_pytorchs(size, side):
    images = draw(2, *size, 3)
    wanted = torch.nn.functional.adaptive_avg_pool2d(as_torch(images), (side, side))
    found = layers.adaptive_pool(images, side)
    np.testing.assert_allclose(found, as_numpy(wanted), rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_to_the_same_size_changes_no_bit():
    images = draw(2, 7, 7, 3)
    assert layers.adaptive_pool(images, 7) is images


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 6), (5, 7), (6, 3)])
def test_the_halving_mean_is_pytorchs(size):
    images = draw(2, *size, 3)
    pool = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    wanted = as_numpy(pool(as_torch(images)))
    np.testing.assert_allclose(layers.halving_pool(images), wanted, rtol=1e-6, atol=1e-6)


def test_the_mean_over_a_window_is_that_of_each_place():
    images = draw(2, 5, 6, 3)
    found = layers.mean_pool(images, 4)
    assert found.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(found[:, 1, 2], images[:, 1:5, 2:6].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(layers.mean_pool(images), images.mean((1, 2)), atol=1e-6)


def test_a_window_larger_than_the_map_is_refused(one_line):
    with one_line("3x8", "5x5", "training size"):
        layers.mean_pool(draw(1, 3, 8, 2), 5)


class Net(nn.Module):
    """A dropout layer below a parent, as `fc6/dropout`."""

    rate: float

    @nn.compact
    def __call__(self, x, train_layers, keys):
        return layers.Dropout(self.rate, name="drop")(x, train_layers, keys)


def drop(x, rate=0.25, seed=0, train_layers=frozenset({"drop"}), indices=None):
    key = jax.random.key(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
        np.arange(len(x)) if indices is None else np.asarray(indices)
    )
    return np.asarray(Net(rate).apply({}, x, train_layers, keys))


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_drops_its_share_and_scales_the_others(rate):
    x = draw(64, 1000)
    y = drop(x, rate)
    kept = y != 0
    # 64,000 draws: five standard deviations of the share are below 0.01.
    assert kept.mean() == pytest.approx(1 - rate, abs=0.01)
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)


def test_a_mask_is_a_function_of_the_examples_key_alone():
    x = draw(6, 50)
    whole = drop(x)
    np.testing.assert_array_equal(drop(x), whole)
    np.testing.assert_array_equal(drop(x[4:], indices=[4, 5]), whole[4:])
    assert not np.array_equal(drop(x, seed=1), whole)
    masks = whole == 0
    assert all(not np.array_equal(masks[0], masks[i]) for i in range(1, 6))


def test_a_mask_depends_on_the_layers_path():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train_layers, keys):
            return [
                layers.Dropout(0.5, name=name)(x, train_layers, keys) for name in ("one", "two")
            ]

    keys = jax.random.split(jax.random.key(0), 4)
    one, two = Two().apply({}, draw(4, 100), frozenset({"one", "two"}), keys)
    assert not np.array_equal(one == 0, two == 0)


def test_a_dropout_that_does_not_train_is_the_identity():
    x = draw(4, 10)
    np.testing.assert_array_equal(Net(0.5).apply({}, x, frozenset(), None), x)
    np.testing.assert_array_equal(drop(x, train_layers=frozenset({"other"})), x)
    np.testing.assert_array_equal(drop(x, rate=0.0), x)


def test_a_dropout_that_trains_needs_keys():
    with pytest.raises(ValueError, match=r"drop .* needs a key for each example"):
        Net(0.5).apply({}, draw(4, 10), frozenset({"drop"}), None)


def test_a_fully_connected_layer_slides_as_a_convolution():
    """On each window of a larger map, what it gives on that window by itself."""
    plain = layers.FullyConnected(6, 3, 0.5, "output")
    dense = layers.FullyConnected(6, 3, 0.5, "output", dense=True)
    maps = draw(2, 4, 5, 2)
    variables = {"params": {"kernel": draw(3, 3, 2, 6), "bias": draw(6)}}
    found = dense.apply(variables, maps, frozenset(), None)
    assert found.shape == (2, 2, 3, 6)
    for i in range(2):
        for j in range(3):
            wanted = plain.apply(variables, maps[:, i : i + 3, j : j + 3], frozenset(), None)
            np.testing.assert_allclose(found[:, i, j], wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="2x5"):
        dense.apply(variables, maps[:, :2], frozenset(), None)
