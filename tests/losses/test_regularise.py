"""Each regulariser beside NumPy, in float64, and its gradient beside a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.losses import regularise
from jxfer.losses.regularise import RegulariseConfig


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def test_half_the_sum_of_squares_over_all_leaves(rng):
    kernel, bias = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    wanted = (np.sum(np.float64(kernel) ** 2) + np.sum(np.float64(bias) ** 2)) / 2
    assert regularise.half_square([kernel, bias]) == pytest.approx(wanted)
    slope = jax.grad(lambda leaf: regularise.half_square([leaf]))(kernel)
    np.testing.assert_allclose(slope, kernel)


def test_half_the_sum_of_squares_of_half_precision_leaves_is_float32():
    found = regularise.half_square([jnp.full(1000, 0.1, jnp.bfloat16)])
    assert found.dtype == jnp.float32
    assert found == pytest.approx(500 * float(jnp.bfloat16(0.1)) ** 2)


def test_feature_distance_adds_up_channels_and_averages_positions(rng):
    ours, start = rng.normal(size=(2, 5, 3, 4, 6)).astype(np.float32)
    squares = (np.float64(ours) - start) ** 2
    wanted = [sum(squares[b, :, :, c].mean() for c in range(6)) / 2 for b in range(5)]
    np.testing.assert_allclose(regularise.feature_distance(ours, start), wanted, rtol=1e-6)
    slope = jax.grad(lambda x: regularise.feature_distance(x, start).sum())(ours)
    np.testing.assert_allclose(slope, (ours - start) / 12, rtol=1e-5, atol=1e-7)


def test_feature_distance_of_vectors_has_no_positions(rng):
    ours, start = rng.normal(size=(2, 5, 7)).astype(np.float32)
    wanted = ((np.float64(ours) - start) ** 2).sum(-1) / 2
    np.testing.assert_allclose(regularise.feature_distance(ours, start), wanted, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (6, 6)])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_shrinkage_and_its_gradient_are_those_of_the_singular_values(shape, k, rng):
    """d sigma_i^2 / dF = 2 sigma_i u_i v_i^T."""
    features = rng.normal(size=shape).astype(np.float32)
    u, sigma, vt = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    value, slope = jax.value_and_grad(regularise.batch_spectral_shrinkage)(features, k)
    smallest = slice(len(sigma) - k, None)
    np.testing.assert_allclose(value, (sigma[smallest] ** 2).sum(), rtol=1e-4, atol=1e-5)
    wanted = 2 * (u[:, smallest] * sigma[smallest]) @ vt[smallest]
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_shrinkage_is_its_slope(rng):
    features, way = rng.normal(size=(2, 5, 8)).astype(np.float32)

    def value(step):
        return np.sum(np.linalg.svd(features + step * np.float64(way))[1][-2:] ** 2)

    slope = jax.grad(regularise.batch_spectral_shrinkage)(features, 2)
    numerical = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float(jnp.sum(slope * way)) == pytest.approx(numerical, rel=1e-4)


@pytest.mark.parametrize("features", [np.eye(4, 6), np.zeros((4, 6)), np.ones((4, 6))])
def test_the_gradient_of_shrinkage_is_finite_where_singular_values_meet(features):
    slope = jax.grad(regularise.batch_spectral_shrinkage)(features.astype(np.float32), 2)
    assert np.isfinite(slope).all()


def test_more_singular_values_than_there_are_is_an_error(one_line):
    with one_line("--regularise.bss-k 5", "4 examples of 6 features", "4 singular values"):
        regularise.batch_spectral_shrinkage(jnp.ones((4, 6)), 5)


def test_co_tuning_is_the_cross_entropy_with_the_row_of_the_label(rng):
    logits = rng.normal(size=(5, 7)).astype(np.float32)
    relationship = rng.dirichlet(np.ones(7), 3).astype(np.float32)
    labels = np.array([0, 2, 2, 1, 0], np.int32)
    powers = np.exp(np.float64(logits))
    probabilities = powers / powers.sum(-1, keepdims=True)
    wanted = [
        -sum(relationship[label, s] * np.log(probabilities[b, s]) for s in range(7))
        for b, label in enumerate(labels)
    ]
    found = regularise.co_tuning(jnp.asarray(logits), labels, jnp.asarray(relationship))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    slope = jax.grad(lambda x: regularise.co_tuning(x, labels, jnp.asarray(relationship)).sum())(
        logits
    )
    np.testing.assert_allclose(slope, probabilities - relationship[labels], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"l2_sp": -0.1}, ("--regularise.l2-sp -0.1", "at least 0")),
        ({"delta": float("nan")}, ("--regularise.delta nan", "at least 0")),
        ({"bss": float("inf")}, ("--regularise.bss inf", "at least 0")),
        ({"bss": 0.1, "bss_k": 0}, ("--regularise.bss-k 0", "at least 1")),
        ({"bss_k": 2}, ("--regularise.bss-k goes with --regularise.bss",)),
        ({"l2_sp_head": 0.1}, ("--regularise.l2-sp-head goes with --regularise.l2-sp",)),
    ],
)
def test_a_strength_out_of_range_or_without_its_partner_is_named(fields, words, one_line):
    with one_line(*words):
        RegulariseConfig(**fields)
