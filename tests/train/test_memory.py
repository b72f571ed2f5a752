"""What a program takes, and what there is."""

import jax
import jax.numpy as jnp
import pytest

from jxfer.train import memory, parallel


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


def test_an_accelerator_has_what_its_allocator_says(small_card, monkeypatch):
    assert memory.limit_bytes() == 10**6
    monkeypatch.setattr(small_card, "memory_stats", staticmethod(lambda: None))
    assert memory.limit_bytes() is None
