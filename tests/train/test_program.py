"""What decides the last bits of features."""

import os

import pytest

from jxfer.train import program


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has none")
def test_the_visible_cores_count(monkeypatch):
    before = program.identity(16)
    assert program.identity(16) == before
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(before["cores"] + 1)})
    assert program.identity(16) == before | {"cores": before["cores"] + 1}


def test_without_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert program.identity(16)["cores"] == 7
