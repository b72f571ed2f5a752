"""The public API: all parts of a config, under the names type checkers see, and light to import."""

import ast
import dataclasses
import pathlib
import subprocess
import sys
import typing

import jxfer


def configs(kind):
    """A dataclass, and those of its fields, of theirs, and so on."""
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint):
            found |= configs(hint)
    return found


def test_every_part_of_a_run_s_config_is_exported():
    parts = configs(jxfer.TrainConfig)
    assert {"AdaptConfig", "CacheConfig", "HeadConfig"} <= {part.__name__ for part in parts}
    for part in parts:
        assert getattr(jxfer, part.__name__) is part
        assert part.__name__ in dir(jxfer)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(pathlib.Path(jxfer.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: node.module for node in block.body for alias in node.names}
    assert told == jxfer._HOMES


def test_importing_jxfer_does_not_wait_for_jax():
    code = "import sys, jxfer; jxfer.UserError; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
