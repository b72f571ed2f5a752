"""Which steps `--profile` traces; tests/commands/test_main.py reads the trace of a run."""

import logging

import jax
import pytest

from jxfer.train.profile import Profile


@pytest.fixture
def calls(monkeypatch):
    """What happens, in order: starts and stops of a trace, and the steps between."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: found.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def take(profile, calls, first, end, until=None):
    step = profile.of(lambda number: calls.append(number) or number, first, end)
    for number in range(first, (until or end) + 1):
        assert step(number) == number


def test_it_begins_behind_the_second_step_and_holds_five(calls, tmp_path, caplog):
    profile = Profile(tmp_path)
    with caplog.at_level(logging.INFO, "jxfer"):
        take(profile, calls, 11, 20)
    assert calls == [11, 12, str(tmp_path), 13, 14, 15, 16, 17, "stop", 18, 19, 20]
    (record,) = caplog.records
    assert record.message == f"traced steps 13 to 17: {tmp_path}/plugins/profile"
    calls.clear()
    take(profile, calls, 21, 30)  # the next phase
    assert calls == list(range(21, 31))
    profile.close()
    assert "stop" not in calls


def test_it_ends_with_the_phase(calls, tmp_path):
    take(Profile(tmp_path), calls, 1, 4)
    assert calls == [1, 2, str(tmp_path), 3, 4, "stop"]


def test_too_few_steps_are_one_line(calls, tmp_path, caplog):
    take(Profile(tmp_path), calls, 9, 10)
    assert calls == [9, 10]
    (record,) = caplog.records
    assert record.message.startswith("--profile: nothing to trace")
    assert record.message.endswith("2 are left")


def test_a_run_that_is_cut_off_closes_its_trace(calls, tmp_path):
    profile = Profile(tmp_path)
    take(profile, calls, 1, 10, until=4)
    profile.close()
    profile.close()
    assert calls == [1, 2, str(tmp_path), 3, 4, "stop"]


def test_without_a_folder_the_step_is_the_step_itself():
    assert Profile(None).of(len, 1, 10) is len
