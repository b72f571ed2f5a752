"""What a program takes, what there is, and the line where it is too little."""

import logging

import jax
import jax.numpy as jnp
import pytest

from jxfer.train import memory, parallel


@pytest.fixture
def device(monkeypatch):
    """An accelerator of 1 MB, as JAX tells of it."""

    class Device:
        platform, device_kind = "gpu", "card"
        memory_stats = staticmethod(lambda: {"bytes_limit": 10**6})

    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device])
    return Device


def add(state, batch):
    return state + batch


def test_a_donated_argument_and_the_result_in_its_place_count_once():
    n = 10**6
    kept, donated = (
        parallel.compile_step(add, donate_state=donate)
        .lower(*[jax.ShapeDtypeStruct((8, n), jnp.float32)] * 2)
        .compile()
        for donate in (False, True)
    )
    # Eight devices share this machine's memory; two arguments, and a result unless it is shared.
    assert memory.program_bytes(kept) == pytest.approx(8 * 3 * 4 * n, rel=1e-4)
    assert memory.program_bytes(donated) == pytest.approx(8 * 2 * 4 * n, rel=1e-4)


def test_cpu_devices_share_what_is_available(monkeypatch):
    monkeypatch.setattr(memory.machine, "available_bytes", lambda: 12345)
    assert memory.limit_bytes() == 12345


def test_an_accelerator_has_what_its_allocator_says(device, monkeypatch, one_line):
    assert memory.limit_bytes() == 10**6
    monkeypatch.setattr(device, "memory_stats", staticmethod(lambda: None))
    with one_line("card does not tell"):
        memory.limit_bytes()


def test_too_little_is_a_warning_on_cpu_and_an_error_elsewhere(monkeypatch, caplog, one_line):
    step = parallel.compile_step(lambda state, batch: state * batch)
    rows = jnp.ones((8, 10**5))
    monkeypatch.setattr(memory, "limit_bytes", lambda: 10**6)
    with caplog.at_level(logging.WARNING, "jxfer"):
        memory.check(step, rows, rows)
    (record,) = caplog.records
    assert "a step takes 0.0096 GB of memory, and 0.001 GB are free" in record.message
    monkeypatch.setattr(memory, "limit_bytes", lambda: 10**9)
    memory.check(step, rows, rows)
    assert len(caplog.records) == 1


def test_a_step_that_a_device_cannot_hold_is_refused(device, one_line):
    step = parallel.compile_step(lambda state, batch: state - batch)
    rows = jnp.ones((8, 10**5))
    with one_line("0.0012 GB of memory, and 0.001 GB is what a device has", "--largest-batch"):
        memory.check(step, rows, rows)


def test_the_check_costs_no_second_compilation(caplog):
    step = parallel.compile_step(lambda state, batch: state - 2 * batch, donate_state=True)
    state, batch = (parallel.replicate(jnp.ones(3)) for _ in range(2))
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        memory.check(step, state, batch)
        checked = _compilations(caplog)
        step(state, batch)
    assert checked == _compilations(caplog) == 1


def _compilations(caplog):
    return sum("Finished XLA compilation" in record.message for record in caplog.records)
