"""Schedules of the learning rate beside PyTorch's and a closed form."""

import jax
import numpy as np
import pytest
import torch

from jxfer.transfer.optimizer import OptimizerConfig, schedule

STEPS_PER_EPOCH = 2.0


def torch_rates(make_scheduler, steps):
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def our_rates(config, steps):
    return np.asarray(jax.vmap(schedule(config, 0.1, steps, STEPS_PER_EPOCH))(np.arange(steps)))


def test_cosine_is_torchs_cosine_annealing_to_zero():
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50), 50)
    np.testing.assert_allclose(our_rates(OptimizerConfig(), 50), theirs, rtol=1e-6, atol=1e-8)


def test_warm_up_rises_evenly_to_the_peak_and_then_the_schedule_starts():
    """Torch's LinearLR from 1/5 of the rate, then its cosine over what is left."""
    config = OptimizerConfig(warmup_epochs=2.5)

    def scheduler(optimizer):
        ramp = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=45)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [ramp, cosine], milestones=[5])

    ours = our_rates(config, 50)
    assert ours[0] == pytest.approx(0.1 / 5)
    np.testing.assert_allclose(ours, torch_rates(scheduler, 50), rtol=1e-5, atol=1e-8)


def test_a_warm_up_of_one_step_starts_at_the_peak():
    ours = our_rates(OptimizerConfig(warmup_epochs=0.5), 10)
    np.testing.assert_allclose(ours[:2], 0.1, rtol=1e-6)


def one_cycle_at(step, steps):
    """Smith & Topin's cosine form: 1/25 of the peak, up over 30 %, down to 1e-4 of the start."""
    top = int(0.3 * steps)
    start, peak, end = 0.1 / 25, 0.1, 0.1 / 25 / 1e4
    low, high, share = (
        (start, peak, step / top) if step < top else (end, peak, 1 - (step - top) / (steps - top))
    )
    return low + (high - low) * (1 - np.cos(np.pi * share)) / 2


@pytest.mark.parametrize("steps", [10, 97, 1000])
def test_one_cycle_is_its_closed_form(steps):
    wanted = [one_cycle_at(step, steps) for step in range(steps)]
    ours = our_rates(OptimizerConfig(schedule="one_cycle"), steps)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-8)


def test_one_cycle_is_torchs_but_for_half_a_step():
    """Torch puts the peak at step 0.3 n - 1 and the end at step n - 1; optax one step later each.

    So torch's rate lies between ours at this step and ours one step later.
    """
    steps = 1000
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=0.1, total_steps=steps, cycle_momentum=False
        ),
        steps,
    )
    rate = schedule(OptimizerConfig(schedule="one_cycle"), 0.1, steps, STEPS_PER_EPOCH)
    ours = np.asarray(jax.vmap(rate)(np.arange(steps + 1)))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[300] == pytest.approx(theirs[299], rel=1e-6)
    assert ours[1000] == pytest.approx(theirs[999], rel=1e-3)
    low, high = np.minimum(ours[:-1], ours[1:]), np.maximum(ours[:-1], ours[1:])
    assert (theirs >= low - 1e-7).all()
    assert (theirs <= high + 1e-7).all()


@pytest.mark.parametrize("warmup_epochs", [5.0, 9.0])
def test_a_warm_up_that_does_not_fit_is_an_error(warmup_epochs, one_line):
    with one_line("--optimizer.warmup-epochs", "shorter than the run"):
        schedule(OptimizerConfig(warmup_epochs=warmup_epochs), 0.1, 10, 2.0)


def test_one_cycle_takes_no_other_warm_up(one_line):
    with one_line("--optimizer.warmup-epochs", "one_cycle"):
        schedule(OptimizerConfig(schedule="one_cycle", warmup_epochs=1.0), 0.1, 10, 2.0)
