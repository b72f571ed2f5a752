"""The bytes that `scripts/bench_scaling.py` reads out of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.data.transforms import CIFAR
from jxfer.transfer.strategy import StrategyConfig
from scripts import bench_scaling, equal_records


def test_bytes_of_a_program_whose_sums_are_known():
    step = jax.pmap(lambda x, y: jax.lax.psum((x, y), "batch"), axis_name="batch")
    devices = jax.device_count()
    x, y = jnp.zeros((devices, 3)), jnp.zeros((devices, 2, 5), jnp.int32)
    _, size = bench_scaling.all_reduced(step.lower(x, y).compile().as_text())
    assert size == 4 * (3 + 2 * 5)


def test_operands_of_one_and_of_several_values_and_without_a_shape():
    program = """
      %all-reduce.1 = f32[] all-reduce(%a), channel_id=1, to_apply=%add
      ROOT %all-reduce.2 = (bf16[2,3]{1,0}, /*index=1*/s32[7]{0}) all-reduce(%b, %c), channel_id=2
      %use = f32[9]{0} add(%all-reduce.1, %d)
    """
    assert bench_scaling.all_reduced(program) == (2, 4 + 2 * 6 + 4 * 7)


@pytest.mark.slow
def test_a_probe_reduces_its_head_and_its_metrics():
    plan = bench_scaling._plan("resnet20", StrategyConfig("linear_probe"), CIFAR)
    step, state, batch = bench_scaling._compiled(plan, 2 * jax.device_count())
    _, size = bench_scaling.all_reduced(step.lower(state, batch).compile().as_text())
    head = 64 * equal_records.CLASSES + equal_records.CLASSES
    assert size == 4 * (head + bench_scaling.METRICS)


@pytest.mark.slow
def test_the_two_written_sources_hold_the_records_of_the_one_in_memory(tmp_path):
    number = 20
    for kind in ("folder", "tfds"):
        path = tmp_path / kind
        equal_records.write(kind, number, path)
        train = equal_records.read(kind, number, str(path))
        assert len(train) == number - equal_records.CLASSES  # one of each class is for validation
        assert train[0].image == equal_records.InMemory(number)[0].image
        counts = np.bincount(train.labels, minlength=equal_records.CLASSES)
        assert counts.tolist() == [1] * equal_records.CLASSES
