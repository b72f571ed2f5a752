"""What a terminal would act on is escaped, and nothing else changes."""

import io
import json
import logging

import pytest

from jxfer import text

HOSTILE = "a\nb\x1b[2J\x9b31m\u202etxt.exe\x07<b>\udcff\\n é 猫"
SHOWN = "a\\nb\\x1b[2J\\x9b31m\\u202etxt.exe\\x07<b>\\udcff\\n é 猫"


def test_one_line_escapes_what_cannot_be_printed():
    assert text.one_line(HOSTILE) == SHOWN
    assert text.one_line("ants and bees, 猫") == "ants and bees, 猫"


def test_a_table_keeps_its_lines_and_columns():
    rows = [("class", "n"), (HOSTILE, "3"), ("b", "10")]
    lines = text.table(rows).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert lines[1] == f"{SHOWN}  3"
    assert lines[2].index("10") == lines[1].index("  3") + 2


@pytest.mark.parametrize("value", [HOSTILE, {HOSTILE: [HOSTILE, 1]}, "\U000e0001\x7f\u2028"])
def test_json_reads_back_to_the_same_and_shows_nothing_raw(value):
    shown = text.to_json(value)
    assert json.loads(shown) == value
    assert shown.replace("\n", "").isprintable()
    assert text.to_json(["猫"]) == '[\n  "猫"\n]'


def test_a_log_record_is_one_line():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(text.OneLine("jxfer: %(message)s"))
    record = logging.LogRecord("x", logging.INFO, "f", 1, "left out %s", (HOSTILE,), None)
    handler.emit(record)
    assert stream.getvalue() == f"jxfer: left out {SHOWN}\n"
