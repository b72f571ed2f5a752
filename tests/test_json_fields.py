import dataclasses
from typing import Any, Literal

import pytest

from jxfer.errors import UserError
from jxfer.json_fields import ADDED, decode, parse


@dataclasses.dataclass(frozen=True)
class Inner:
    pair: tuple[float, int]


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    choice: Literal["a", "b"]
    maybe: int | None
    inner: tuple[Inner, ...]
    free: dict[str, Any] | None = None

    def __post_init__(self):
        if self.name == "":
            raise UserError("name must not be empty")


GOOD = {
    "name": "x",
    "flag": True,
    "choice": "a",
    "maybe": None,
    "inner": [{"pair": [1, 2]}],
    "free": {"k": [1]},
}


def test_decodes_nested_fields():
    assert decode(Outer, GOOD, "f") == Outer("x", True, "a", None, (Inner((1.0, 2)),), {"k": [1]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 3}, ("name must be text", "3")),
        ({"name": None}, ("name must be text",)),
        ({"flag": 1}, ("flag must be true or false",)),
        ({"maybe": True}, ("maybe must be an integer",)),
        ({"maybe": 1.5}, ("maybe must be an integer",)),
        ({"choice": "c"}, ("choice must be one of a, b", "'c'")),
        ({"choice": ["a"]}, ("choice must be one of a, b",)),
        ({"inner": {}}, ("inner must be a list",)),
        ({"inner": [{"pair": [1]}]}, ("inner[0].pair must be a list of 2",)),
        ({"inner": [{"pair": ["1", 2]}]}, ("inner[0].pair[0] must be a number",)),
        ({"inner": [{}]}, ("field inner[0].pair is missing",)),
        ({"inner": [3]}, ("inner[0] must be an object",)),
        ({"free": []}, ("free must be an object",)),
        ({"extra": 1}, ("unknown field extra",)),
        ({"name": ""}, ("name must not be empty",)),
    ],
)
def test_refuses(one_line, change, words):
    with one_line("f.json:", *words):
        decode(Outer, GOOD | change, "f.json")


def test_a_field_with_a_default_must_be_there_too(one_line):
    with one_line("f.json: the field free is missing"):
        decode(Outer, {k: v for k, v in GOOD.items() if k != "free"}, "f.json")


def test_a_field_that_came_later_may_be_absent_and_is_checked_where_it_is_there(one_line):
    @dataclasses.dataclass(frozen=True)
    class Later:
        name: str
        size: int | None = dataclasses.field(default=None, metadata=ADDED)

    assert decode(Later, {"name": "x"}, "f.json") == Later("x")
    assert decode(Later, {"size": 3, "name": "x"}, "f.json") == Later("x", 3)
    with one_line("f.json: size must be an integer"):
        decode(Later, {"name": "x", "size": "3"}, "f.json")


def test_the_file_must_hold_an_object(one_line):
    with one_line("f.json: the file must be an object"):
        decode(Outer, [], "f.json")


def test_nesting_has_an_end():
    assert parse("[" * 50 + "]" * 50)
    assert parse('{"a": 1}') == {"a": 1}
    assert parse("3") == 3
    for text in ("[" * 51 + "]" * 51, '{"a":' * 51 + "1" + "}" * 51, "[" * 10**6):
        with pytest.raises(ValueError, match="nested more than 50 levels deep"):
            parse(text)
    with pytest.raises(ValueError, match="Expecting value"):
        parse("x")


def test_an_integer_beyond_float64_is_no_number(one_line):
    @dataclasses.dataclass(frozen=True)
    class Rate:
        lr: float

    assert decode(Rate, {"lr": 2}, "f.json") == Rate(2.0)
    with one_line("f.json", "lr", "within float64"):
        decode(Rate, {"lr": 10**400}, "f.json")
