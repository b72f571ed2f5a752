"""A step that computes in bfloat16 keeps its state in float32, and learns."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.train.steps import make_plan, train


def in_bfloat16(plan):
    return dataclasses.replace(
        plan, model=dataclasses.replace(plan.model, compute_dtype="bfloat16")
    )


@pytest.fixture
def plan():
    return make_plan("scratch", ema_decay=0.9)


def test_the_state_stays_float32_and_the_loss_falls(plan):
    plan = in_bfloat16(plan)
    before = jax.eval_shape(plan.initial_state, plan.model.shapes())
    history = train(plan, steps=8)
    dtypes = [jax.tree.map(lambda leaf: np.dtype(leaf.dtype), s) for s in (before, history[-1][0])]
    assert dtypes[0] == dtypes[1]
    kept = history[-1][0]
    for tree in (kept.params, kept.batch_stats, kept.ema):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    losses = [sums["loss"] for _, sums in history]
    assert {loss.dtype for loss in losses} == {np.dtype(np.float32)}
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_the_first_loss_is_near_that_in_float32(plan):
    """Seven convolutions, three roundings each of at most 2^-8 (see tests/models)."""
    exact, rounded = (train(p, steps=1)[0][1]["loss"] for p in (plan, in_bfloat16(plan)))
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=np.sqrt(21 / 3) * 2**-8)
