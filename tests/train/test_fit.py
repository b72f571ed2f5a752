"""Whether a step fits, and the largest batch that does: by search, and by compiled programs."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jxfer import machine
from jxfer.train import fit, memory, parallel
from jxfer.transfer.strategy import StrategyConfig, phases
from tests.train.conftest import ROOT
from tests.train.steps import make_plan

COSTS = {
    "straight": lambda n: 1000 + 7 * n,
    "bent": lambda n: 1000 + 3 * n + 0.01 * n * n,
    "stairs": lambda n: 1000 + 40 * (n // 6),
    "refused": lambda n: math.inf if n > 90 else 10 * n,
    "jump": lambda n: n + (5000 if n > 37 else 0),
}


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("start", [1, 20, 3000])
def test_the_search_finds_what_trying_every_number_finds(cost, start):
    calls = []

    def counted(number):
        calls.append(number)
        return cost(number)

    for limit in (1, 1007, 1500, 1993):
        calls.clear()
        (number, size), above = fit.search(counted, start, limit)
        fits = [n for n in range(1, 4000) if cost(n) <= limit]
        assert number == max(fits, default=0)
        assert size == (cost(number) if fits else 0)
        assert above == cost(number + 1) > limit
        assert len(calls) == len(set(calls)) <= 24


@pytest.mark.parametrize("start", [8, 100])
def test_four_programs_are_enough_where_memory_is_a_straight_line(start):
    calls = []
    (number, _), _ = fit.search(lambda n: calls.append(n) or 900 + 7 * n, start, 1600)
    assert number == 100
    assert len(calls) <= 4


@pytest.fixture
def lp_ft():
    """The plans of two phases: the head, then everything."""
    plan = make_plan()
    found = phases(StrategyConfig("lp_ft"), plan.model.stages)
    return [dataclasses.replace(plan, phase=phase) for phase in found]


def test_the_batch_fits_in_every_phase(lp_ft, monkeypatch):
    asked = []

    def step_bytes(plan, variables, batch_size):
        asked.append((plan.phase.name, batch_size))
        return batch_size * (10 if plan.phase.name == "all" else 4)

    monkeypatch.setattr(fit, "step_bytes", step_bytes)
    found = fit.largest_batch(lp_ft, {}, 16, 1000)
    assert found == fit.Fit("all", 96, 960, 104, 1040, 1000)
    assert [size for name, size in asked if name == "head"] == [96]


def test_a_phase_that_takes_more_though_less_trains_decides(lp_ft, monkeypatch):
    costs = {"all": 10, "head": 20}
    monkeypatch.setattr(fit, "step_bytes", lambda plan, _, n: n * costs[plan.phase.name])
    found = fit.largest_batch(lp_ft, {}, 16, 1000)
    assert (found.phase, found.batch_size, found.next_batch_size) == ("head", 48, 56)


def test_parts_divide_the_batch(lp_ft, monkeypatch):
    monkeypatch.setattr(fit, "step_bytes", lambda plan, variables, n: n)
    plans = [dataclasses.replace(plan, accumulate=3) for plan in lp_ft]
    assert fit.largest_batch(plans, {}, 24, 100).batch_size == 96


def test_not_even_one_image_fits(lp_ft, monkeypatch, one_line):
    monkeypatch.setattr(fit, "step_bytes", lambda plan, variables, n: math.inf)
    with one_line("a step of 8 images takes more than there is", "0.001 GB", "--remat"):
        fit.largest_batch(lp_ft, {}, 16, 10**6)


@pytest.mark.slow
def test_the_figures_are_those_of_compiled_programs():
    plan = make_plan("linear_probe")
    variables = plan.model.init(0)
    limit = fit.step_bytes(plan, variables, 40)
    found = fit.largest_batch([plan], variables, 8, limit)
    assert (found.batch_size, found.bytes, found.next_batch_size) == (40, limit, 48)
    assert found.next_bytes == fit.step_bytes(plan, variables, 48) > limit
    # By hand: parameters and statistics in and out, images and labels, and what lies between.
    per_device = limit / 8
    assert per_device > 2 * 4 * 14_000 - 4 * 51 + 5 * (32 * 32 * 3 + 4)
    assert memory.limit_bytes() > limit


def rows_of(per_device):
    """A batch of 400 bytes an image for eight devices."""
    return {"label": jnp.ones((8, per_device, 100))}


def test_too_little_for_now_is_a_warning_on_cpu(monkeypatch, caplog):
    step = parallel.compile_step(lambda state, batch: state * batch["label"].sum())
    state, batch = jnp.ones(8), rows_of(1000)
    monkeypatch.setattr(memory, "limit_bytes", lambda: 10**6)
    with caplog.at_level(logging.WARNING, "jxfer"):
        fit.check(step, state, batch)
    (record,) = caplog.records
    assert "a step takes 0.0032 GB of memory, and 0.001 GB are free" in record.message
    monkeypatch.setattr(memory, "limit_bytes", lambda: 10**9)
    fit.check(step, state, batch)
    assert len(caplog.records) == 1


def test_a_step_runs_where_the_device_does_not_tell_its_memory(small_card, monkeypatch, caplog):
    monkeypatch.setattr(small_card, "memory_stats", staticmethod(lambda: None))
    step = parallel.compile_step(lambda state, batch: state - batch["label"].sum())
    fit.check(step, jnp.ones(8), rows_of(4200))
    assert "card does not tell how much memory it has" in caplog.text


@pytest.mark.parametrize(("parts", "fits"), [(1, 19992), (4, 19968)])
def test_a_step_that_a_device_cannot_hold_is_refused(parts, fits, small_card, one_line):
    """4 bytes of state and as many of the result, and 400 an image."""
    step = parallel.compile_step(lambda state, batch: state - batch["label"].sum())
    told = ("0.00168 GB of memory, and 0.001 GB is what a device has", f"--batch-size {fits} fits")
    with one_line(*told):
        fit.check(step, jnp.ones(8), rows_of(4200), parts=parts)


def test_a_machine_that_can_never_hold_a_step_refuses_it(monkeypatch, one_line):
    step = parallel.compile_step(lambda state, batch: jnp.cumsum(batch["label"], 0) + state)
    monkeypatch.setattr(machine, "memory_bytes", lambda: machine.own_bytes() + 10**6)
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**6)
    with one_line("0.001 GB are free", "-size ", " fits; or set --remat", "in a new run folder"):
        fit.check(step, jnp.ones(8), rows_of(4000))
    with one_line("not even one image on each device fits"):
        monkeypatch.setattr(machine, "available_bytes", lambda: 10)
        fit.check(step, jnp.ones(8), rows_of(4000))


def test_the_check_costs_no_second_compilation(caplog):
    step = parallel.compile_step(
        lambda state, batch: state - 2 * batch["label"].sum(), donate_state=True
    )
    state, batch = (parallel.replicate(rows) for rows in (jnp.ones(()), {"label": jnp.ones(3)}))
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        fit.check(step, state, batch)
        checked = _compilations(caplog)
        step(state, batch)
    assert checked == _compilations(caplog) == 1


def _compilations(caplog):
    return sum("Finished XLA compilation" in record.message for record in caplog.records)


@pytest.fixture
def control_group():
    """A control group of 1.2 GB: its path."""
    root = pathlib.Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    group = (root / "memory" if first else root) / f"jxfer-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if first else "memory.max")
        if not limit.exists():  # version 2, where the group above does not share memory out
            group.rmdir()
            pytest.skip("no control group of memory can be made here")
        limit.write_text(str(1_200_000_000))
    except OSError as error:
        pytest.skip(f"no control group of memory can be made here: {error.strerror}")
    yield group
    with contextlib.suppress(OSError):  # where a process is still leaving it
        group.rmdir()


@pytest.mark.slow
def test_a_step_that_its_control_group_cannot_hold(control_group, images, tmp_path):
    """Refused before it runs, with the batch that fits; and that one does."""

    def train(batch_size):
        options = {
            "--run": tmp_path / str(batch_size),
            "--data.source": f"folder:{images}",
            "--model.arch": "resnet20",
            "--model.through": "stage1",
            "--strategy.name": "scratch",
            "--batch-size": batch_size,
            "--epochs": 1,
        }
        words = " ".join(f"{name} {value}" for name, value in options.items())
        command = f"echo $$ > {control_group}/cgroup.procs && exec {sys.executable} -m jxfer train"
        return subprocess.run(
            ["sh", "-c", f"{command} {words}"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = train(4096)
    assert refused.returncode == 2, refused.stderr
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("jxfer: error: a step takes ")
    fits = re.search(r"--batch-size (\d+) fits", line)
    assert fits, line
    assert 36 < int(fits[1]) < 4096
    done = train(int(fits[1]))
    assert done.returncode == 0, done.stderr
    assert "memory" not in done.stderr.replace("stay in memory", "")
