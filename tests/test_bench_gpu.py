"""The script that measures an accelerator runs, in tiny form, on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from scripts import bench_gpu


@pytest.mark.slow
def test_both_sides_of_every_case_are_measured(tmp_path):
    file = tmp_path / "figures.json"
    small = ["--small", "--arch", "resnet18", "--batch-size", "2"]
    few = ["--seconds", "0.05", "--repeats", "2", "--json", str(file)]
    output = subprocess.run(
        [sys.executable, "-m", "scripts.bench_gpu", *small, *few],
        check=True,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    ).stdout
    assert len(output.splitlines()) == 1 + 4
    results = {found["cell"]["case"]: found for found in json.loads(file.read_text())}
    assert set(results) == {"full", "partial", "head", "cached"}
    for found in results.values():
        for side in ("jxfer", "torch"):
            assert found[side]["images_per_second"] > 0
            assert found[side]["of_peak"] > 0
            assert len(found[side]["step_seconds"]) == 2
        assert found["speed_ratio"] > 0
    flops = {case: found["jxfer"]["flops"] for case, found in results.items()}
    assert flops["full"] > flops["partial"] > flops["head"] > 0
    # Without the passes of the frozen part: stem to stage 3 is what the head's step has more.
    assert flops["partial"] > flops["cached"] > 0


def test_the_peak_of_memory_is_asked_before_the_first_product_of_matrices(monkeypatch):
    asked = {}

    class Worker:
        def __init__(self, side, _):
            self.questions = asked[side] = []

        def answer(self):
            return {"flops": 1.0}

        def ask(self, question):
            self.questions.append(question.split()[0])
            peak = 10 if "matmul" in self.questions else 7
            return {"seconds": 1.0, "flops_per_second": 1.0, "peak_bytes": peak}

        def close(self):
            pass

    monkeypatch.setattr(bench_gpu, "Worker", Worker)
    cell = bench_gpu.Cell("resnet18", "full", 2, 64, 128, "default", small=True)
    found = bench_gpu.measure(cell, seconds=1, repeats=2)
    assert [found[side]["peak_bytes"] for side in ("jxfer", "torch")] == [7, 7]
    for questions in asked.values():
        assert questions == ["steps", "peak", *["steps", "matmul"] * 2]


def test_nothing_heavy_is_imported_that_a_gpu_machine_may_lack():
    code = (
        "import sys, scripts.bench_gpu, jxfer.train.step, jxfer.train.flops\n"
        "from jxfer.transfer import strategy\n"
        "print([m for m in ('grain', 'tensorflow_datasets', 'tyro', 'orbax.checkpoint') "
        "if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"
