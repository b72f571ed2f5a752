"""Rates are data of the compiled step: plans that differ in them share it, and learn at their own.

What the step computes is tested beside each of its parts.
"""

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.train import parallel, step
from jxfer.transfer.optimizer import OptimizerConfig
from tests.train.steps import draw_batch, make_plan

STEPS = 3
OPTIMIZERS = {
    "sgd": (
        OptimizerConfig(lr=0.5, schedule="step", step_epochs=0.4, clip_norm=1.0),
        OptimizerConfig(lr=0.02, backbone_lr=0.02, warmup_epochs=0.4, clip_norm=1.0),
    ),
    "adamw": (
        OptimizerConfig("adamw", lr=0.01, layer_decay=0.5),
        OptimizerConfig("adamw", lr=0.003, schedule="one_cycle"),
    ),
}
"""Two of a rule, unlike in rates and schedule."""


def take(plan, train_step, *rates):
    """The parameters after some steps, on the host."""
    (batch,) = parallel.shard([draw_batch()])
    state = parallel.replicate(plan.initial_state(plan.model.init(0), 3))
    for _ in range(STEPS):
        state, _ = train_step(state, batch, {}, *rates)
    return trees.flatten(parallel.fetch(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_plans_that_differ_in_rates_share_a_program_and_keep_their_rates(rule):
    """Beside the step in which the schedule is computed and the rates are constants."""
    programs = step._compiled.cache_info().misses
    for optimizer in OPTIMIZERS[rule]:
        plan = make_plan(optimizer=optimizer)
        start = trees.flatten(plan.model.init(0)["params"])
        rates = parallel.replicate(plan.rate_table)
        found = take(plan, step.compiled_train_step(plan), rates)
        wanted = take(plan, parallel.compile_step(step.make_train_step(plan)))
        for path, leaf in start.items():
            largest = np.abs(wanted[path] - leaf).max()
            np.testing.assert_allclose(
                found[path] - leaf, wanted[path] - leaf, rtol=0, atol=1e-4 * largest, err_msg=path
            )
    assert step._compiled.cache_info().misses == programs + 1


def test_a_table_of_rates_is_its_schedule_step_by_step():
    plan = make_plan(optimizer=OPTIMIZERS["sgd"][1])
    for label, schedule in plan.rates.items():
        wanted = [float(schedule(count)) for count in range(plan.total_steps)]
        np.testing.assert_allclose(plan.rate_table[label], wanted, rtol=1e-6)
    assert plan.rates.keys() == plan.rate_table.keys() == {"low_lr", "head"}
    assert jax.tree.leaves(plan.rate_table)[0].dtype == np.float32
