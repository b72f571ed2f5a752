"""What decides the last bits of features."""

import os
import subprocess

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


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package of two folders in a git repository, with nothing committed yet."""
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    for name in ("__init__.py", "models/resnet.py"):
        (package / name).touch()
    monkeypatch.setattr(program, "_PACKAGE", package)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return package


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_tells_of_changes_anywhere_in_the_package(package):
    assert program.commit() is None
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "all")
    clean = program.commit()
    assert len(clean) == 40
    (package.parent / "notes").touch()
    assert program.commit() == clean
    (package / "models/new.py").touch()
    assert program.commit() == clean + "+changes"
    (package / "models/new.py").unlink()
    (package / "models/resnet.py").write_text("changed")
    assert program.commit() == clean + "+changes"


def test_a_package_that_is_installed_in_a_repository_of_something_else_has_no_commit(package):
    git(package.parent, "init")
    git(package.parent, "commit", "--allow-empty", "-m", "theirs")
    assert program.commit() is None
