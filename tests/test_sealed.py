import json

import pytest

from jxfer import sealed
from jxfer.errors import UserError

VALUES = {
    "name": "ünïcode \ud800",
    "accuracy": 0.1 + 0.2,
    "counts": [1, 20, {"deep": None}],
    "small": 5e-324,
    "nothing": float("nan"),
    "3": True,
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(sealed.seal(VALUES), indent=2))
    return path


def shown(values):
    return json.dumps(values, sort_keys=True)


def test_what_was_sealed_comes_back(file):
    assert shown(sealed.read(file, "restore it")) == shown(VALUES)
    assert list(json.loads(file.read_text())) == ["checksum", *VALUES]


def test_the_checksum_is_that_of_what_json_keeps():
    assert sealed.seal({"a": (1, 2), "b": {3: 4}}) == sealed.seal({"a": [1, 2], "b": {"3": 4}}) | {
        "a": (1, 2),
        "b": {3: 4},
    }
    assert sealed.seal({"a": 1, "b": 2})["checksum"] == sealed.seal({"b": 2, "a": 1})["checksum"]


@pytest.mark.parametrize("bit", range(8))
def test_no_bit_flips_in_silence(bit, file):
    """In every byte: one line, but where it makes another space of a space."""
    whole = file.read_bytes()
    told = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            found = sealed.read(file, "restore it")
        except UserError as error:
            told.append(str(error))
        else:
            assert shown(found) == shown(VALUES)
    assert len(told) > len(whole) - 20
    for line in told:
        assert f"{file} is damaged" in line or f"{file} cannot be read: it is damaged" in line
        assert "\n" not in line


def test_a_file_that_is_cut_off_or_gone_is_one_line(file, one_line):
    whole = file.read_bytes()
    for size in range(len(whole) - 1):
        file.write_bytes(whole[:size])
        with one_line(str(file), "damaged", "write it anew"):
            sealed.read(file, "write it anew")
    file.unlink()
    with one_line(str(file), "No such file", "write it anew"):
        sealed.read(file, "write it anew")


def test_a_file_without_a_checksum_is_taken_as_it_is(file):
    """Of an earlier version, or changed by a person, who was told to remove it."""
    file.write_text('{"accuracy": 0.5}')
    assert sealed.read(file, "restore it") == {"accuracy": 0.5}
    file.write_text("[1]")
    assert sealed.read(file, "restore it") == [1]


def test_who_changes_a_value_is_told_what_to_do(file, one_line):
    file.write_text(file.read_text().replace("20", "21"))
    with one_line(str(file), "restore it", "if the change is yours, remove the line"):
        sealed.read(file, "restore it")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "checksum" not in line))
    assert sealed.read(file, "restore it")["counts"][1] == 21
