"""Compiled programs on disk: where, when not, and with the same bits."""

import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax._src import compilation_cache

from jxfer import machine
from jxfer.train import program_cache
from tests.rot import faults

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS_OWN = "JAX_COMPILATION_CACHE_DIR"  # set by conftest.py


@pytest.fixture
def updates(monkeypatch, tmp_path):
    """What `switch_on` sets, kept from JAX; the cache is `tmp_path`, on as by default."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    # Put back after the test, whatever `switch_on` put in its place.
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    monkeypatch.delenv("JXFER_COMPILED")
    return found


def test_it_is_a_folder_for_each_number_of_cores_with_a_bound(updates, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "visible_cores", lambda: 3)
    program_cache.switch_on()
    folder = tmp_path / "compiled" / "3-cores"
    assert folder.is_dir()
    assert updates["jax_compilation_cache_dir"] == str(folder)
    assert updates["jax_compilation_cache_max_size"] == 5 * 2**30
    assert updates["jax_persistent_cache_min_compile_time_secs"] == 0


def test_a_folder_that_the_user_chose_stays(updates, monkeypatch, tmp_path):
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "theirs", raising=False)
    program_cache.switch_on()
    assert updates == {}
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_switched_off(updates, monkeypatch, tmp_path, one_line):
    monkeypatch.setenv("JXFER_COMPILED", "off")
    program_cache.switch_on()
    assert updates == {}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("JXFER_COMPILED", "no")
    with one_line("JXFER_COMPILED=no", "on or off"):
        program_cache.switch_on()


def test_several_hosts_do_without(updates, monkeypatch):
    program_cache.switch_off()
    assert updates == {}  # a folder that the user chose
    program_cache.switch_on()
    program_cache.switch_off()
    assert updates["jax_compilation_cache_dir"] is None


def test_a_folder_that_cannot_be_written_is_one_line(updates, monkeypatch, tmp_path, caplog):
    (tmp_path / "compiled").write_text("a file in its place")
    with caplog.at_level(logging.WARNING, "jxfer"):
        program_cache.switch_on()
    assert updates == {}
    (record,) = caplog.records
    assert "\n" not in record.message
    for words in (str(tmp_path / "compiled"), "Not a directory", "JXFER_COMPILED=off"):
        assert words in record.message


def test_what_a_kill_cut_off_goes(updates, tmp_path):
    program_cache.switch_on()
    folder = pathlib.Path(updates["jax_compilation_cache_dir"])
    for name in ("whole-cache", "whole-atime", "cut-cache"):
        (folder / name).write_bytes(b"bytes")
    program_cache.switch_on()
    assert {path.name for path in folder.glob("*-*")} == {"whole-cache", "whole-atime"}


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "earlier"])
def test_a_damaged_program_is_told_and_is_none(fault, updates, tmp_path, caplog):
    """A crash, or other numbers, is what JAX makes of one that its compression lets pass."""
    cache = program_cache._Sealed(str(tmp_path))
    program = bytes(range(256))
    cache.put("jit_step-0", program)
    assert cache.get("jit_step-0") == program
    file = tmp_path / "jit_step-0-cache"
    if fault == "earlier":
        file.write_bytes(program)  # without its digest
    else:
        faults.inflict(fault, file)
    assert cache.get("jit_step-0") is None
    assert f"{file} is damaged, or of an earlier version" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [".lockfile"]
    cache.put("jit_step-0", program)
    assert cache.get("jit_step-0") == program


STEPS = """
import json, zlib
import jax, numpy as np
from jxfer.train import program_cache
from tests.train.steps import make_plan, train

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
program_cache.switch_on()
state, sums = train(make_plan("full"), steps=3)[-1]
leaves = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, sums))
print(json.dumps([
    zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)),
    events.count("cache_hits"), events.count("cache_misses"),
]))
"""


@pytest.mark.slow
def test_a_program_from_the_cache_gives_the_bits_of_one_compiled_anew(tmp_path):
    """Three processes: without a cache, filling one, and reading it."""

    def run(switch):
        done = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={name: value for name, value in os.environ.items() if name != TESTS_OWN}
            | {"JXFER_CACHE": str(tmp_path), "JXFER_COMPILED": switch, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    without, filling, reading = (run(switch) for switch in ("off", "on", "on"))
    assert without[0] == filling[0] == reading[0]
    assert without[1:] == [0, 0]
    assert filling[2] > 0
    assert reading[1] == filling[1] + filling[2]
    assert reading[2] == 0
