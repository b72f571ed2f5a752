"""What SIGTERM does to a process: between steps, amid them, and the second time."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jxfer.train.preemption import Preempted, Preemption

ROOT = pathlib.Path(__file__).resolve().parents[2]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_with_nothing_to_save_it_ends_the_run_where_it_stands(caplog):
    with pytest.raises(Preempted) as caught, Preemption():
        terminate()
    assert caught.value.code == 75
    assert "the same command resumes" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_with_steps_to_save_it_waits_to_be_asked():
    with Preemption() as preemption:
        preemption.unsaved = True
        assert not preemption.asked()
        terminate()
        assert preemption.asked()


def test_a_signal_while_it_saves_is_not_forgotten():
    with Preemption() as preemption:
        preemption.unsaved = True
        assert not preemption.saved()
        preemption.unsaved = True
        terminate()
        assert preemption.saved()


def test_a_handler_that_is_there_stays():
    """Such as submitit's and Ray's, which queue the job again."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
    try:
        with Preemption() as preemption:
            terminate()
            assert not preemption.asked()
        assert signals == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


BUSY = """
import hashlib
from jxfer.train.preemption import Preemption
with Preemption() as preemption:
    preemption.unsaved = True
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no handler of Python runs meanwhile
"""


@pytest.mark.slow
def test_the_second_signal_ends_a_process_that_is_busy():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
