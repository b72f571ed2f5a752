"""Gradient accumulation: the same step in less memory, and no backward pass of what is frozen."""

import dataclasses

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.data.transforms import CIFAR
from jxfer.models.heads import HeadConfig
from jxfer.train import parallel, step
from tests.train.steps import BATCH, draw_batch, make_plan, train


@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param("full", HeadConfig(), id="full", marks=pytest.mark.slow),
        pytest.param("linear_probe", HeadConfig("mlp", (8,), dropout=0.5), id="dropout"),
    ],
)
def test_four_parts_take_the_step_of_the_whole_batch(name, head):
    """The norms run on their stored averages; each example keeps its own dropout mask."""
    (one, sums), (four, sums_of_four) = (
        train(make_plan(name, head=head, folded=True, accumulate=n), steps=2)[-1] for n in (1, 4)
    )
    found, wanted = trees.flatten(four.params), trees.flatten(one.params)
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    assert np.any(wanted["head/linear/bias"])  # zero at the start
    assert sums_of_four["loss"] == pytest.approx(sums["loss"], rel=1e-5)
    assert sums_of_four["examples"] == sums["examples"] == BATCH
    assert sums_of_four["correct"] == sums["correct"]
    assert [leaf.dtype for leaf in sums_of_four.values()] == [leaf.dtype for leaf in sums.values()]


@pytest.mark.slow
def test_batchnorm_normalises_each_part_and_its_averages_follow_part_by_part():
    """Two parts move the averages as two passes over them, each of momentum 0.9, would."""
    plan = make_plan("scratch", accumulate=2)
    assert plan.train_layers
    ((state, _),) = train(plan, steps=1)
    variables = plan.model.init(0)
    images = step.normalise(draw_batch()["image"], CIFAR)
    apply = jax.jit(plan.model.apply, static_argnums=2)
    for part in (images[:8], images[8:]):
        _, variables["batch_stats"] = apply(variables, part, plan.train_layers)
    found = trees.flatten(state.batch_stats)
    for path, leaf in trees.flatten(variables["batch_stats"]).items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_part_must_have_a_whole_number_of_examples(one_line):
    parallel.check_batch(32, 4)
    with one_line("--accumulate 3", "4 examples", "--batch-size 32", "8 devices"):
        parallel.check_batch(32, 3)


def programs(accumulate):
    """The compiled steps of a linear probe and of full fine-tuning, 16 images of 32 px a device."""
    found = []
    for name in ("linear_probe", "full"):
        plan = make_plan(name, folded=True, accumulate=accumulate)
        state = jax.eval_shape(plan.initial_state, plan.model.shapes())
        state, batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape), leaf.dtype),
            (state, draw_batch(size=32)),
        )
        program = parallel.compile_step(step.make_train_step(plan)).lower(state, batch).compile()
        found.append(program)
    return found


@pytest.mark.slow
def test_a_frozen_backbone_still_has_no_backward_pass():
    """XLA's cost analysis counts a loop's body once: the forward pass of one part of four."""
    plan = make_plan("linear_probe")

    def forward(variables, images):
        return plan.model.apply(variables, step.normalise(images, CIFAR))[0]["logits"]

    part = jax.ShapeDtypeStruct((BATCH // 4, 32, 32, 3), np.uint8)
    forward_cost = jax.jit(forward).lower(plan.model.shapes(), part).compile().cost_analysis()
    probe, full = programs(4)
    whole, whole_full = programs(1)
    flops = [program.cost_analysis()["flops"] for program in (probe, full)]
    assert flops[0] == pytest.approx(forward_cost["flops"], rel=0.02)
    assert flops[1] > 2 * flops[0]  # this measure sees a backward pass
    # A part at a time: the activations that the backward pass needs are those of one part.
    memory = [p.memory_analysis().temp_size_in_bytes for p in (probe, full, whole, whole_full)]
    assert memory[1] < 0.5 * memory[3]
    assert memory[0] < 0.5 * memory[1]


def test_plans_that_differ_by_their_parts_are_two_programs():
    assert make_plan(accumulate=2) != make_plan()
    assert dataclasses.replace(make_plan(accumulate=2), accumulate=1) == make_plan()
