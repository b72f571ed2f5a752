"""Each file of a prepared set or a cache, damaged in each way: harmless, or told in one line."""

import os
import pathlib
import subprocess
import sys

import huggingface_hub.constants
import pytest
import safetensors.numpy

from jxfer import trees
from jxfer.data import sources
from jxfer.data.readers import images_sha256
from jxfer.zoo import weights
from tests import torch_reference
from tests.rot import faults
from tests.zoo.server import NAME, publish

slow = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def read_digits(capfd):
    """Of a source: (pixels, labels and names of all digits, or None; stderr)."""

    def read(*data):
        found = []

        def program():
            for split in ("train", "test"):
                source = sources.open_for_evaluation(sources.DataConfig(*data), split)
                found.append((images_sha256(source), source.labels.tobytes(), source.class_names))

        code, _, lines = faults.guarded(capfd, program)
        return (None if code else found), lines

    return read


@slow
def test_a_prepared_set(tmp_path, scratch, monkeypatch, read_digits):
    """TFDS gives its records checksums, and its names of classes none."""
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    read_digits("digits")
    folder = tmp_path / "embedded"
    (folder / "digits/1.0.0/checksums.json").unlink()

    def read():
        return read_digits("tfds:digits", str(folder))

    wanted, _ = read()
    without_names = lambda name: not name.endswith("labels.txt")  # noqa: E731
    faults.judge(folder, scratch, read, wanted, lambda _: r"digits\b", without_names).check()


@slow
def test_an_embedded_set(tmp_path, scratch, monkeypatch, read_digits):
    """Prepared again, saying so."""
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))

    def read():
        return read_digits("digits")

    wanted, _ = read()
    again = faults.judge(tmp_path / "embedded", scratch, read, wanted, lambda _: "digits/1.0.0")
    again.check()
    for name, found in again.table.items():
        if name.startswith("digits/1.0.0/"):
            assert "harmless" not in set().union(*found.values()), name


@slow
@pytest.mark.parametrize("offline", [False, True])
def test_the_cache_of_the_hub(offline, hub_server, tmp_path, scratch, capfd, monkeypatch):
    """What comes from the Hub has its hash, which is compared whenever it is used."""
    state = torch_reference.create("resnet20", 5).state_dict()
    content = safetensors.numpy.save({name: tensor.numpy() for name, tensor in state.items()})
    publish(hub_server, content)

    def read():
        found = []

        def program():
            one = weights.load(NAME)
            found.append((one.card, trees.sha256(one.variables)))

        code, _, lines = faults.guarded(capfd, program)
        return (None if code else found[0]), lines

    wanted, _ = read()
    if offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    names = r"(config\.json|model\.safetensors) is (damaged|not in the cache)"
    faults.judge(tmp_path / "hub", scratch, read, wanted, lambda _: names).check()


PROGRAMS = """
import logging, os, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jxfer.train import program_cache
from tests.rot import faults

told = []
class Keep(logging.Handler):
    def emit(self, record):
        told.append("jxfer: " + record.getMessage())
logging.getLogger("jxfer").addHandler(Keep())

def read():
    told.clear()
    jax.clear_caches()
    program_cache.switch_on()
    return np.asarray(jax.jit(jnp.linalg.qr)(np.arange(12.0).reshape(4, 3))[0]).tobytes(), [*told]

folder = pathlib.Path(os.environ["JXFER_CACHE"])
wanted, _ = read()
names = lambda name: name.rpartition("/")[2]
faults.judge(folder / "compiled", folder, read, wanted, names).check()
"""


@slow
@pytest.mark.parametrize("flips", [8])
def test_the_cache_of_compiled_programs(flips, tmp_path):
    """In a process of its own: what is run may crash."""
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {"JXFER_CACHE": str(tmp_path), "JXFER_COMPILED": "on", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS],
        env=inherited | environment | {"JXFER_ROT_FLIPS": str(flips)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    (program,) = (line for line in done.stdout.splitlines() if "-cache" in line)
    assert "compiling it again" in program
