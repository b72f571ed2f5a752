import json
import math
import pathlib
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jxfer.train.writers import Writers, check_metrics, has_begun


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: pathlib.Path):
    """(tag, step, value) of all event files: length, its checksum, an Event, its checksum.

    As TensorBoard has it, a start hides the points of its step and later ones.
    """
    found = []
    for path in sorted(folder.glob("events*")):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            if event.session_log.status == SessionLog.START:
                found = [point for point in found if point[1] < event.step]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            position += 12 + length + 4
    return found


def write(folder, from_step, records):
    with Writers(folder, from_step) as writers:
        for step, record in records:
            writers.write(step, record)


def test_a_record_is_a_line_with_its_step(tmp_path):
    write(tmp_path, 0, [(2, {"loss": 0.5}), (4, {"loss": 0.25, "note": "x", "none": None})])
    assert lines(tmp_path) == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.25, "note": "x", "none": None},
    ]


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, 1e308, math.pi])
def test_a_float_reads_back_to_the_same_bits(value, tmp_path):
    write(tmp_path, 0, [(1, {"loss": value})])
    assert lines(tmp_path)[0]["loss"] == value


def test_a_line_is_on_disk_before_the_next_is_written(tmp_path):
    with Writers(tmp_path, 0) as writers:
        writers.write(1, {"loss": 1.0})
        assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_a_mark_tells_the_lines_that_were_written(tmp_path, one_line, caplog):
    path = tmp_path / "metrics.jsonl"
    assert not has_begun(tmp_path)
    with Writers(tmp_path, 0) as writers:
        writers.write(2, {"loss": 1.0})
        mark = writers.mark()
        writers.write(4, {"loss": 0.5})
    assert has_begun(tmp_path)
    whole = path.read_bytes()
    assert mark["bytes"] == len(whole.splitlines(keepends=True)[0])
    check_metrics(tmp_path, mark)
    for bad in (whole.replace(b"1.0", b"1.4"), whole[:10], b""):
        path.write_bytes(bad)
        with one_line(str(path), "damaged", "remove it"):
            check_metrics(tmp_path, mark)
    # What comes after the mark is written again: whatever became of it is all one.
    path.write_bytes(whole[: mark["bytes"]] + b"\xff" + whole[mark["bytes"] + 1 :])
    check_metrics(tmp_path, mark)
    with Writers(tmp_path, 2, mark=mark) as writers:
        writers.write(4, {"loss": 0.5})
        again = writers.mark()
    assert path.read_bytes() == whole
    assert again["bytes"] == len(whole)
    assert caplog.text == ""
    path.unlink()
    check_metrics(tmp_path, mark)
    assert f"{path} is missing" in caplog.text


def test_resuming_drops_the_lines_after_the_checkpoint(tmp_path):
    write(tmp_path, 0, [(step, {"loss": step / 10}) for step in (2, 4, 6, 8)])
    write(tmp_path, 5, [(6, {"loss": 60.0})])
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 0.2),
        (4, 0.4),
        (6, 60.0),
    ]


def test_resuming_keeps_the_line_of_the_checkpoints_own_step(tmp_path):
    write(tmp_path, 0, [(2, {}), (4, {})])
    write(tmp_path, 4, [])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"step"', "{", '{"step": 3, "loss": 0.1'])
def test_a_last_line_that_a_kill_cut_off_is_dropped(tail, tmp_path):
    write(tmp_path, 0, [(2, {"loss": 0.2})])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    write(tmp_path, 8, [(9, {"loss": 0.9})])
    assert lines(tmp_path) == [{"step": 2, "loss": 0.2}, {"step": 9, "loss": 0.9}]


def test_a_new_run_in_a_folder_with_lines_starts_over(tmp_path):
    """A run that was killed before its first checkpoint starts at step 0."""
    write(tmp_path, 0, [(2, {"loss": 0.2})])
    write(tmp_path, 0, [(2, {"loss": 0.3})])
    assert lines(tmp_path) == [{"step": 2, "loss": 0.3}]


def test_tensorboard_gets_the_numbers(tmp_path):
    write(tmp_path, 0, [(2, {"loss": 0.5, "note": "x"}), (4, {"loss": 0.25, "lr/head": 1})])
    assert scalars(tmp_path) == [("loss", 2, 0.5), ("loss", 4, 0.25), ("lr/head", 4, 1.0)]


@pytest.mark.parametrize("from_step", [0, 2])
def test_tensorboard_shows_the_points_of_a_killed_run_once(from_step, tmp_path):
    killed = Writers(tmp_path, 0)
    for step in (2, 4):
        killed.write(step, {"loss": step / 8})
    assert scalars(tmp_path) == [("loss", 2, 0.25), ("loss", 4, 0.5)]  # and nobody closes it
    write(tmp_path, from_step, [(step, {"loss": step / 8}) for step in (2, 4) if step > from_step])
    assert scalars(tmp_path) == [("loss", 2, 0.25), ("loss", 4, 0.5)]
    killed.__exit__()
