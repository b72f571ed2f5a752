"""Two processes of two devices each train, evaluate, save and stop as one process of four."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jxfer import trees
from jxfer.data.transforms import AugmentConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train import config as configs
from jxfer.train import hosts
from jxfer.train.hosts import HostsConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds; a busy machine is slow
TIMEOUT = 60  # --hosts.timeout, where no host is to die
SOON = 20  # where one is


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(config, run, count, extra=(), last=(), timeout=TIMEOUT):
    """`jxfer train` on so many hosts, with four devices in all; `last`: to the last host alone."""
    options = [*configs.to_options(configs.to_dict(config)), *extra]
    port, flag = free_port(), f"--xla_force_host_platform_device_count={4 // count}"
    processes = []
    for index in range(count):
        place = (
            *("--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", str(count)),
            *("--hosts.index", str(index), "--hosts.timeout", str(timeout)),
        )
        command = [sys.executable, "-m", "jxfer", "train", "--run", str(run), *options]
        processes.append(
            subprocess.Popen(
                [*command, *(place if count > 1 else ()), *(last if index == count - 1 else ())],
                env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def end(processes):
    """[(exit code, stdout, stderr)] by host."""
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(p.returncode, *streams) for p, streams in zip(processes, told, strict=True)]


def lines(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(processes, run, step):
    until = time.monotonic() + PATIENCE
    while not any(line["step"] >= step for line in lines(run)):
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.monotonic() < until
        time.sleep(0.01)


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def short(small_config, make_entry):
    """Six steps that train all but the norms' averages; 15 images to validate on, 12 to test."""
    return small_config(
        model=ModelConfig(weights=make_entry("standard")),
        strategy=StrategyConfig("full", trainable_norms="frozen"),
        epochs=2.5,
        log_every=1,
    )


@pytest.fixture(scope="module")
def long(small_config, make_entry):
    """So many steps that a signal finds them under way; a convex problem."""
    return small_config(
        model=ModelConfig(weights=make_entry("standard")),
        strategy=StrategyConfig("linear_probe"),
        augment=AugmentConfig(flip=True),
        optimizer=OptimizerConfig(lr=0.002),
        epochs=100.0,
        eval_every=100.0,
        log_every=3,
        checkpoint_every=50,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("last", "what"), [("--run=elsewhere", "--run"), ("--seed=7", "config")])
def test_hosts_that_are_not_told_the_same_refuse(short, tmp_path, last, what):
    told = end(start(short, tmp_path / "run", 2, last=last.split("=")))
    assert [code for code, *_ in told] == [2, 2]
    for index, (_, _, stderr) in enumerate(told):
        assert f"host {1 - index} has another {what} than host {index}" in stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_two_hosts_take_the_steps_of_one_and_count_each_example_once(short, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    ((code, _, told),) = end(start(short, one, 1))
    assert code == 0, told
    first, second = end(start(short, two, 2))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "best step" in first[1]
    assert "best step" not in second[1]

    alone, shared = summary(one), summary(two)
    assert (alone["devices"], alone["hosts"]) == (4, 1)
    assert (shared["devices"], shared["hosts"]) == (4, 2)
    expected, found = assert_same_course(one, two)
    assert len(expected) == 6
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-5, atol=1e-5)
    for name in ("val_correct", "val_examples", "test_correct", "test_examples", "best_step"):
        assert shared[name] == alone[name]
    assert (shared["val_examples"], shared["test_examples"]) == (15, 12)
    assert len(list(two.glob("events*"))) == 1


def assert_same_course(one, two):
    """Evaluations of as many examples with the same outcome; returns both runs' losses."""
    expected, found = lines(one), lines(two)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for wanted, line in zip(expected, found, strict=True):
        assert wanted.keys() == line.keys()
        for name in wanted.keys() & {"val_correct", "val_examples", "val_top5_accuracy"}:
            assert line[name] == wanted[name]
        for name in wanted.keys() & {"val_loss", "val_macro_f1", "score"}:
            assert line[name] == pytest.approx(wanted[name], rel=1e-5)
    return [
        [line["train_loss"] for line in run if "train_loss" in line] for run in (expected, found)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "regularise"),
    [("cdan", RegulariseConfig(co_tuning=0.1)), ("adabn", RegulariseConfig())],
)
def test_two_hosts_adapt_as_one(method, regularise, adapted_config, tmp_path):
    """Each reads its share of the target, too."""
    one, two = tmp_path / "one", tmp_path / "two"
    config = adapted_config(
        method,
        strategy=StrategyConfig("full", trainable_norms="frozen"),
        optimizer=OptimizerConfig(),
        regularise=regularise,
        log_every=1,
    )
    ((code, _, told),) = end(start(config, one, 1))
    assert code == 0, told
    finished = end(start(config, two, 2))
    assert [code for code, *_ in finished] == [0, 0], finished
    expected, found = assert_same_course(one, two)
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-5, atol=1e-5)
    alone, shared = summary(one), summary(two)
    for name in ("val_correct", "val_examples", "test_correct", "test_examples", "best_step"):
        assert shared[name] == alone[name]
    for name, value in alone["adapt"].items():
        close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert shared["adapt"][name] == close, name


@pytest.mark.slow
def test_a_run_goes_from_two_hosts_to_one_and_back(long, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    ((code, _, told),) = end(start(long, whole, 1))
    assert code == 0, told

    processes = start(long, run, 2)
    wait_for_step(processes, run, 9)
    processes[1].send_signal(signal.SIGTERM)
    stopped = end(processes)
    saved = [told.strip().splitlines()[-1] for _, _, told in stopped]
    assert [code for code, _, _ in stopped] == [75, 75], stopped
    assert saved[0] == saved[1]
    assert "the same command resumes" in saved[0]

    (alone,) = start(long, run, 1)
    wait_for_step([alone], run, 60)
    alone.send_signal(signal.SIGTERM)
    ((code, _, told),) = end([alone])
    assert code == 75, told
    assert "resumes from step" in told

    processes = start(long, run, 2, timeout=SOON)
    wait_for_step(processes, run, 120)
    processes[1].kill()
    killed = time.monotonic()
    (code, _, told), _ = end(processes)
    assert time.monotonic() - killed < 2 * SOON + 10
    assert code not in (0, 2, 75)
    assert "another died or never came; the same command on all hosts resumes" in told

    finished = end(start(long, run, 2))
    assert [code for code, _, _ in finished] == [0, 0], finished
    assert "resumes from step" in finished[0][2]
    expected, found = lines(whole), lines(run)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for name in ("train_loss", "val_loss"):
        values = [[line[name] for line in r if name in line] for r in (expected, found)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-5)
    _, wanted = store.load(str(whole / "model"))
    _, variables = store.load(str(run / "model"))
    for path, leaf in trees.flatten(wanted).items():
        np.testing.assert_allclose(trees.flatten(variables)[path], leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_hosts_stop_early_together(long, tmp_path):
    """Where nothing improves after the first evaluation, the third is the last."""
    config = dataclasses.replace(
        long, optimizer=OptimizerConfig(lr=1e-12), epochs=50.0, eval_every=2.0, patience=2
    )
    run = tmp_path / "run"
    told = end(start(config, run, 2))
    assert [code for code, *_ in told] == [0, 0], told
    evaluated = [line["step"] for line in lines(run) if "val_correct" in line]
    assert len(evaluated) == 3
    found = summary(run)
    assert (found["steps"], found["stopped_early"]) == (evaluated[-1], True)
    assert found["best_step"] == evaluated[0]


LEAVES = """
import sys, time
from jxfer.train import hosts
hosts._LEAVING = 2
with hosts.joined(hosts.HostsConfig(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))):
    if hosts.is_first():
        time.sleep(8)
    if len(sys.argv) > 3:
        sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("last", "code"), [((), 0), (("preempted",), 75)])
def test_hosts_wait_for_the_one_that_still_writes(last, code):
    """Longer than JAX lets a host wait for the others where it ends."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES, port, str(index), *last],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    told = end(processes)
    assert [host[0] for host in told] == [code, code], told


@pytest.mark.slow
def test_what_one_host_cannot_do_ends_all_in_a_line(short, tmp_path):
    """Only the first host looks at the run folder."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    for code, _, told in end(start(short, run, 2)):
        assert code == 2
        assert "holds other files" in told.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "a:1"}, ("belong together",)),
        ({"count": 2, "index": 0}, ("belong together",)),
        ({"coordinator": "a", "count": 2, "index": 0}, ("ADDRESS:PORT",)),
        ({"coordinator": ":1", "count": 2, "index": 0}, ("ADDRESS:PORT",)),
        ({"coordinator": "a:1", "count": 2, "index": 2}, ("--hosts.index 2", "0 to 1")),
        ({"timeout": 0}, ("--hosts.timeout 0",)),
    ],
)
def test_options_that_name_no_host_are_refused(options, words, one_line):
    with one_line(*words):
        HostsConfig(**options)


SLURM = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
PODS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (SLURM, None),  # a batch script by itself
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM"),
        (PODS, None),
        (PODS | {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_a_cluster_is_told_by_the_environment(variables, found, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.cluster() == found


@pytest.mark.parametrize(
    ("platforms", "library", "chips", "found"),
    [
        (None, True, ["/dev/accel0"], "Cloud TPU"),
        ("tpu,cpu", True, ["/dev/accel0"], "Cloud TPU"),
        ("cpu", True, ["/dev/accel0"], None),
        (None, False, ["/dev/accel0"], None),
        (None, True, [], None),
    ],
)
def test_a_tpu_is_told_by_its_library_and_chips(platforms, library, chips, found, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda _: object() if library else None)
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: chips if "accel" in pattern else [])
    assert hosts.cluster() == found


def test_one_host_exchanges_with_itself():
    assert hosts.exchange({"a": 1}) == [{"a": 1}]
    assert hosts.from_first(lambda: 3) == 3
    assert hosts.together(lambda: 4) == 4
    hosts.check_same({"config": 1})
