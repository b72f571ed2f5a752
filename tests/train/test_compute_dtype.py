"""A step that computes in bfloat16 keeps its state in float32, and learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from tests.train.steps import make_plan, traced, train


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


NETWORKS = {
    "norms": ("resnet18d", HeadConfig("mlp", (8,), dropout=0.5)),
    "biases": ("vgg11_bn", HeadConfig()),
    "convolutional head": ("resnet20", HeadConfig("conv", (8,))),
}


@pytest.mark.parametrize(("arch", "head"), NETWORKS.values(), ids=NETWORKS)
def test_every_equation_of_the_step_has_the_dtype_that_it_must(arch, head):
    """Forward and backward: bfloat16 where the work is, float32 where numbers are added up."""
    model = registry.create(arch, 3, head=head)
    (phase,) = phases(StrategyConfig("full"), model.stages)
    plan = in_bfloat16(dataclasses.replace(make_plan(), model=model, phase=phase))
    dtypes = {}
    for equation in traced(plan, (8, 2, 224, 224, 3)):
        name, scope = equation.primitive.name, str(equation.source_info.name_stack)
        kinds = {v.aval.dtype for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.inexact)}
        if name == "dot_general" and "head/linear" in scope:
            name = "last layer"
        if name == "psum" or "psum" in name:
            name = "psum"
        dtypes.setdefault(name, set()).update(kinds)
    assert dtypes["conv_general_dilated"] == {jnp.dtype(jnp.bfloat16)}
    assert dtypes["dot_general"] == {jnp.dtype(jnp.bfloat16)}  # the kernels' gradients on CPU
    for name in ("reduce_sum", "last layer", "psum", "exp", "log", "rsqrt"):
        # Moments of the norms, gradients of biases and scales, loss; gradients over devices.
        assert dtypes[name] == {jnp.dtype(jnp.float32)}, name


@pytest.mark.slow
def test_the_first_loss_is_near_that_in_float32(plan):
    """Seven convolutions, three roundings each of at most 2^-8 (see tests/models)."""
    exact, rounded = (train(p, steps=1)[0][1]["loss"] for p in (plan, in_bfloat16(plan)))
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=np.sqrt(21 / 3) * 2**-8)
