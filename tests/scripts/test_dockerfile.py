"""What can be said of the Dockerfile without Docker: its sources, versions and user."""

import fnmatch
import re
import shlex
import tomllib

from tests.scripts.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def arguments(name):
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied():
    return [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]


def ignored(path):
    """As .dockerignore says: the last pattern that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if fnmatch.fnmatch(path, pattern):
                out = not line.startswith("!")
    return out


def test_every_source_exists_and_reaches_the_builder():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_what_the_wheel_is_built_from_is_copied():
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*build["packages"], *build["force-include"], PROJECT["project"]["readme"]]
    assert {*needed, *PROJECT["project"]["license-files"], "pyproject.toml"} <= set(copied())


def test_nothing_else_reaches_the_builder():
    for name in ("runs", ".git", "tests", "docs", ".venv"):
        assert ignored(name)


def test_the_tested_versions_are_installed_with_an_extra_that_there_is():
    [install] = [rest for rest in arguments("RUN") if "pip install" in rest]
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "/src/constraints.txt"
    [extra] = re.fullmatch(r"/src\[(\w+)\]", words[-1]).groups()
    [jax] = PROJECT["project"]["optional-dependencies"][extra]
    assert re.fullmatch(r"jax\[cuda\d\d\]", jax)
    # The plugin that brings CUDA has the version of jax, which the constraints hold.
    assert re.search(r"^jax==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_base_has_a_python_that_jxfer_takes():
    [base] = arguments("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", base)[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_the_last_user_is_not_root():
    users = arguments("USER")
    assert users
    assert users[-1] not in ("root", "0")
