"""Gradient reversal, the maps, the weights and the discriminator beside what they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import log_loss

from jxfer import trees
from jxfer.losses import adversarial


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_reversal_is_the_identity_forward_and_minus_the_strength_backward(dtype, rng):
    x = jnp.asarray(rng.normal(size=(3, 2)), dtype)

    @jax.jit
    def found(x, strength):
        y, pull = jax.vjp(adversarial.reverse_gradient, x, strength)
        return y, *pull(jnp.full_like(x, 2))

    y, for_x, for_strength = found(x, jnp.float32(0.25))
    assert y.dtype == for_x.dtype == dtype
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(for_x, jnp.full_like(x, -0.5))
    assert for_strength == 0


def test_reversal_trains_two_players_against_each_other():
    """Of L = (a x)^2 with a behind and x before: dL/da as it is, dL/dx times -1/2."""

    def loss(a, x):
        return (a * adversarial.reverse_gradient(x, jnp.float32(0.5))) ** 2

    for_a, for_x = jax.grad(loss, argnums=(0, 1))(3.0, 2.0)
    assert (for_a, for_x) == (2 * 3 * 4, -0.5 * 2 * 9 * 2)
    # Beside slopes of (a x)^2, whose value the reversal leaves alone.
    assert for_a == pytest.approx((3.001**2 - 2.999**2) * 4 / 0.002)
    assert for_x == pytest.approx(-0.5 * (2.001**2 - 1.999**2) * 9 / 0.002)


def test_the_strength_rises_as_in_the_paper():
    progress = np.linspace(0, 1, 101)
    wanted = 2 / (1 + np.exp(-10 * progress)) - 1
    found = jax.jit(adversarial.reversal_strength)(progress)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found[0] == 0


def test_the_domain_loss_of_equal_halves_is_the_cross_entropy(rng):
    logits = rng.normal(scale=3, size=10).astype(np.float32)
    is_source = np.arange(10) < 5
    wanted = log_loss(is_source, scipy.special.expit(np.float64(logits)))
    for given in (is_source, is_source.astype(np.float32)):
        found = adversarial.domain_loss(jnp.asarray(logits), jnp.asarray(given))
        assert found == pytest.approx(wanted, rel=1e-5)


def test_both_domains_weigh_the_same_whatever_their_sizes_and_weights(rng):
    logits = rng.normal(size=9).astype(np.float32)
    weights = rng.uniform(1, 2, 9).astype(np.float32)
    is_source = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0], bool)
    shares = weights / np.where(is_source, weights[is_source].sum(), weights[~is_source].sum())
    wanted = log_loss(is_source, scipy.special.expit(np.float64(logits)), sample_weight=shares)
    found = adversarial.domain_loss(*map(jnp.asarray, (logits, is_source, weights)))
    assert found == pytest.approx(wanted, rel=1e-5)
    scaled = weights * np.where(is_source, 8, 1).astype(np.float32)
    again = adversarial.domain_loss(*map(jnp.asarray, (logits, is_source, scaled)))
    assert again == pytest.approx(float(found), rel=1e-6)


def test_the_domain_loss_of_large_logits_is_finite():
    logits, is_source = jnp.array([-1e4, 1e4]), jnp.array([True, False])
    value, slopes = jax.value_and_grad(adversarial.domain_loss)(logits, is_source)
    assert value == 1e4
    np.testing.assert_array_equal(slopes, [-0.5, 0.5])


def test_the_multilinear_map_is_the_outer_product(rng):
    features, probabilities = rng.normal(size=(5, 3)), rng.dirichlet(np.ones(4), 5)
    wanted = [np.outer(f, g).ravel() for f, g in zip(features, probabilities, strict=True)]
    found = adversarial.multilinear(jnp.asarray(features), jnp.asarray(probabilities))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_random_map_is_the_product_of_the_projections(rng):
    features, probabilities = rng.normal(size=(5, 512)), rng.dirichlet(np.ones(10), 5)
    matrices = adversarial.projections(512, 10, seed=0)
    projected = features @ np.float64(matrices["features"])
    wanted = projected * (probabilities @ np.float64(matrices["probabilities"])) / 32
    found = adversarial.random_multilinear(
        jnp.asarray(features), jnp.asarray(probabilities), matrices
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_inner_products_of_the_random_map_are_those_of_the_outer_products(rng):
    """Each is a sum of 1024 independent draws, so its error is known."""
    features, probabilities = rng.normal(3, 1, (4, 512)), rng.dirichlet(np.full(10, 9), 4)
    matrices = adversarial.projections(512, 10, seed=0)
    found = np.float64(
        adversarial.random_multilinear(jnp.asarray(features), jnp.asarray(probabilities), matrices)
    )
    wanted = (features @ features.T) * (probabilities @ probabilities.T)
    for i, j in zip(*np.triu_indices(4, 1), strict=True):
        draws = 1024 * found[i] * found[j]
        error = draws.std(ddof=1) / 32
        assert error < 0.15 * wanted[i, j]
        assert abs(draws.mean() - wanted[i, j]) < 4 * error


def test_projections_are_uniform_with_variance_one():
    matrices = adversarial.projections(512, 10, seed=0)
    assert {name: x.shape for name, x in matrices.items()} == adversarial.projection_shapes(512, 10)
    for matrix in matrices.values():
        assert matrix.dtype == np.float32
        uniform = scipy.stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))
        assert uniform.var() == pytest.approx(1)
        assert scipy.stats.kstest(matrix.ravel(), uniform.cdf).pvalue > 0.01


def test_projections_depend_on_the_seed_alone():
    first, again, other = (adversarial.projections(512, 10, seed) for seed in (0, 0, 1))
    assert trees.sha256(first) == trees.sha256(again)
    for name in first:
        assert (first[name] != other[name]).mean() > 0.99
    assert (first["features"][:10] != first["probabilities"]).mean() > 0.99


def test_outer_products_of_up_to_4096_units_are_not_projected():
    assert adversarial.projection_shapes(512, 8) is None
    assert adversarial.projections(512, 8, seed=0) is None
    assert adversarial.projection_shapes(4097, 1) == {
        "features": (4097, 1024),
        "probabilities": (1, 1024),
    }


def test_entropy_weights_are_those_of_scipys_entropy(rng):
    probabilities = rng.dirichlet(np.ones(4), 6)
    wanted = 1 + np.exp(-scipy.stats.entropy(probabilities, axis=1))
    found = adversarial.entropy_weights(jnp.asarray(probabilities))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_entropy_weights_of_sure_and_uniform_predictions():
    found = adversarial.entropy_weights(jnp.array([[0.0, 1.0, 0.0, 0.0], [0.25] * 4]))
    np.testing.assert_allclose(found, [2, 1.25], rtol=1e-6)


def test_no_gradient_goes_through_entropy_weights():
    slopes = jax.grad(lambda x: adversarial.entropy_weights(x).sum())(jnp.array([[0.3, 0.7]]))
    np.testing.assert_array_equal(slopes, 0)


def test_the_discriminator_starts_as_declared():
    params = adversarial.discriminator_init(512, seed=0)
    declared = trees.flatten(adversarial.discriminator_shapes(512))
    found = trees.flatten(params)
    assert {path: (x.shape, x.dtype) for path, x in found.items()} == {
        path: (x.shape, x.dtype) for path, x in declared.items()
    }
    assert found["hidden1/kernel"].std() == pytest.approx(np.sqrt(2 / 512), rel=0.01)
    assert found["hidden2/kernel"].std() == pytest.approx(np.sqrt(2 / 1024), rel=0.01)
    assert not any(found[f"{name}/bias"].any() for name in params)
    assert trees.sha256(params) == trees.sha256(adversarial.discriminator_init(512, seed=0))
    assert trees.sha256(params) != trees.sha256(adversarial.discriminator_init(512, seed=1))


def test_the_discriminator_is_two_hidden_layers_and_one_logit(rng):
    params = adversarial.discriminator_init(6, seed=0)
    params = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32) / 32, params)
    x = rng.normal(size=(3, 6))
    hidden = x
    for name in ("hidden1", "hidden2"):
        hidden = np.maximum(hidden @ params[name]["kernel"] + params[name]["bias"], 0)
    wanted = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    found = adversarial.discriminate(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, wanted[:, 0], rtol=1e-4, atol=1e-5)
