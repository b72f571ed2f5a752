import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jxfer.losses.classification import cross_entropy


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5.0, size=(16, 7)).astype(np.float32)
    return logits, rng.integers(0, 7, 16)


def torchs(logits, labels, label_smoothing, reduction="none"):
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels), label_smoothing=label_smoothing, reduction=reduction
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_each_examples_loss_is_torchs(batch, label_smoothing):
    logits, labels = batch
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.int32), label_smoothing)
    theirs = torchs(torch.tensor(logits), labels, label_smoothing)
    assert ours.shape == (16,)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_is_torchs(batch, label_smoothing):
    logits, labels = batch
    index = jnp.asarray(labels, jnp.int32)
    ours = jax.grad(lambda x: jnp.mean(cross_entropy(x, index, label_smoothing)))(logits)
    leaf = torch.tensor(logits, requires_grad=True)
    torchs(leaf, labels, label_smoothing, "mean").backward()
    np.testing.assert_allclose(ours, leaf.grad, rtol=1e-5, atol=1e-7)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, 0.0], [0.0, 1e4]], jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([0, 0])), [0.0, 1e4])


def test_equal_logits_cost_the_log_of_the_number_of_classes():
    losses = cross_entropy(jnp.zeros((3, 10)), jnp.asarray([0, 4, 9]), 0.1)
    np.testing.assert_allclose(losses, np.log(10), rtol=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    logits = jnp.asarray([[1.0, 2.0, 3.0]], jnp.bfloat16)
    losses = cross_entropy(logits, jnp.asarray([2]))
    assert losses.dtype == jnp.float32
    theirs = torchs(torch.tensor([[1.0, 2.0, 3.0]]), [2], 0.0)
    np.testing.assert_allclose(losses, theirs, rtol=1e-6)
