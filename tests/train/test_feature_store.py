"""Features on disk: whole, never stale, taken up after a kill, bounded."""

import json
import os
import resource
import threading
import time

import numpy as np
import pytest

from jxfer.train import feature_room
from jxfer.train.feature_store import CacheConfig, Form, in_memory, on_disk

FORM = Form(10, (2, 3), "float32")
KEY = {"weights": "abc", "seed": None}
LIMIT = 10_000
ROWS = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    return tmp_path / "features"


class Computes:
    """Blocks of 4 rows; remembers where it was asked to start, and dies when told."""

    def __init__(self, rows=ROWS, dies_after=None):
        self.rows, self.dies_after, self.starts = rows, dies_after, []

    def __call__(self, start):
        self.starts.append(start)
        for row in range(start, len(self.rows), 4):
            if self.dies_after is not None and row >= self.dies_after:
                raise KeyboardInterrupt
            yield self.rows[row : row + 4]


def entries(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_come_back_as_they_were_computed(dtype):
    form = Form(10, (2, 3), dtype)
    wanted = ROWS.astype(form.numpy_dtype)
    assert form.bytes == 60 * (4 if dtype == "float32" else 2)
    for found in (in_memory(form, Computes()), on_disk(KEY, form, Computes(), LIMIT)):
        assert found.dtype == form.numpy_dtype
        np.testing.assert_array_equal(found, wanted)


def test_rows_are_computed_once():
    on_disk(KEY, FORM, Computes(), LIMIT)
    again = Computes()
    np.testing.assert_array_equal(on_disk(KEY, FORM, again, LIMIT), ROWS)
    assert again.starts == []


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ({"weights": "abd", "seed": None}, FORM),
        ({"weights": "abc", "seed": 0}, FORM),
        (KEY, Form(10, (3, 2), "float32")),
        (KEY, Form(10, (2, 3), "bfloat16")),
    ],
)
def test_another_key_is_another_entry(key, form, root):
    on_disk(KEY, FORM, Computes(), LIMIT)
    other = Computes(ROWS.reshape(10, *form.shape))
    on_disk(key, form, other, LIMIT)
    assert other.starts == [0]
    assert len(entries(root)) == 2


@pytest.mark.parametrize(("dies_after", "kept"), [(0, 0), (4, 4), (8, 8)])
def test_a_kill_leaves_rows_that_the_next_run_takes_up(dies_after, kept):
    with pytest.raises(KeyboardInterrupt):
        on_disk(KEY, FORM, Computes(dies_after=dies_after), LIMIT)
    again = Computes()
    np.testing.assert_array_equal(on_disk(KEY, FORM, again, LIMIT), ROWS)
    assert again.starts == [kept]


def test_what_a_kill_after_the_rename_leaves_goes_with_the_next_use(root):
    on_disk(KEY, FORM, Computes(), LIMIT)
    [entry] = entries(root)
    whole = {path.name for path in (root / entry).iterdir()}
    (root / entry / "filled.json").write_text('{"rows": 10, "crc32": 0}')
    on_disk(KEY, FORM, Computes(), LIMIT)
    assert {path.name for path in (root / entry).iterdir()} == whole


@pytest.mark.parametrize("harm", ["flip", "truncate", "cut list"])
def test_what_a_crash_damaged_is_computed_again(harm, root):
    with pytest.raises(KeyboardInterrupt):
        on_disk(KEY, FORM, Computes(dies_after=8), LIMIT)
    [entry] = entries(root)
    if harm == "cut list":
        (root / entry / "filled.json").write_text('{"rows": 8')
    else:
        damage(root / entry / "features.part", harm)
    again = Computes()
    np.testing.assert_array_equal(on_disk(KEY, FORM, again, LIMIT), ROWS)
    assert again.starts == [0]


@pytest.mark.parametrize("harm", ["flip", "truncate"])
def test_a_damaged_entry_is_computed_again(harm, root):
    on_disk(KEY, FORM, Computes(), LIMIT)
    [entry] = entries(root)
    damage(root / entry / "features.bin", harm)
    again = Computes()
    np.testing.assert_array_equal(on_disk(KEY, FORM, again, LIMIT), ROWS)
    assert again.starts == [0]


def damage(path, harm):
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[50] ^= 1
    else:
        del content[100:]
    path.write_bytes(content)


def test_entries_in_the_making_count_whole(root):
    """Four at once in room for five: nobody fails, and nothing is over the limit at any time."""
    limit, most, failures, done = 5 * FORM.bytes, [0], [], threading.Event()

    def fill(worker):
        try:
            for key in range(12):
                rows = on_disk({"weights": f"{worker * key % 20}"}, FORM, Computes(), limit)
                np.testing.assert_array_equal(rows, ROWS)
        except BaseException as error:
            failures.append(error)

    def watch():
        while not done.is_set():
            with feature_room.lock(root):
                found = [feature_room._size(root / name) for name in entries(root)]
            most[0] = max(most[0], sum(found))

    root.mkdir(parents=True)
    threads = [threading.Thread(target=fill, args=(worker,)) for worker in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert failures == []
    assert FORM.bytes < most[0] <= limit


def test_what_was_not_used_for_longest_makes_room(root):
    keys = [{"weights": name} for name in "abcd"]
    known = set()
    for age, key in enumerate(keys[:3]):
        on_disk(key, FORM, Computes(), LIMIT)
        [new] = set(entries(root)) - known
        known.add(new)
        os.utime(root / new / "entry.json", (1000 + age, 1000 + age))
    held = on_disk(keys[0], FORM, Computes(), LIMIT)  # used just now
    on_disk(keys[3], FORM, Computes(), 3 * FORM.bytes)
    again = {key["weights"]: Computes() for key in keys}
    for key in (keys[0], keys[2], keys[3]):
        on_disk(key, FORM, again[key["weights"]], LIMIT)
        assert again[key["weights"]].starts == []
    on_disk(keys[1], FORM, again["b"], LIMIT)
    assert again["b"].starts == [0]
    np.testing.assert_array_equal(held, ROWS)


def test_an_entry_may_go_while_it_is_read(root):
    held = on_disk(KEY, FORM, Computes(), LIMIT)
    on_disk({"weights": "other"}, FORM, Computes(), FORM.bytes + 10)
    assert len(entries(root)) == 1
    np.testing.assert_array_equal(held, ROWS)


def test_more_than_the_limit_is_refused(one_line):
    with one_line("the features take 2.4e-07 GB, more than --cache.max-gb", "--cache.mode off"):
        on_disk(KEY, FORM, Computes(), FORM.bytes - 1)


def test_what_another_process_fills_stays(one_line):
    other, begun, end = {"weights": "other"}, threading.Event(), threading.Event()

    def slowly(start):
        yield ROWS[:4]
        begun.set()
        end.wait(30)
        yield ROWS[4:]

    thread = threading.Thread(target=on_disk, args=(other, FORM, slowly, LIMIT))
    thread.start()
    assert begun.wait(30)
    with one_line("other processes are filling", "--cache.max-gb"):
        on_disk(KEY, FORM, Computes(), FORM.bytes + 10)
    end.set()
    thread.join()
    np.testing.assert_array_equal(on_disk(other, FORM, Computes(), LIMIT), ROWS)


def test_a_second_process_waits_for_the_first(caplog):
    begun, end, second = threading.Event(), threading.Event(), Computes()

    def slowly(start):
        begun.set()
        end.wait(30)
        yield ROWS

    threads = [threading.Thread(target=on_disk, args=(KEY, FORM, slowly, LIMIT))]
    threads[0].start()
    assert begun.wait(30)
    threads.append(threading.Thread(target=on_disk, args=(KEY, FORM, second, LIMIT)))
    threads[1].start()
    deadline = time.monotonic() + 30
    while "waiting for it" not in caplog.text:
        assert threads[1].is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert second.starts == []


def test_an_entry_says_what_it_is(root):
    on_disk(KEY, FORM, Computes(), LIMIT)
    [entry] = entries(root)
    assert sorted(os.listdir(root / entry)) == ["entry.json", "features.bin"]
    found = json.loads((root / entry / "entry.json").read_text())
    assert (found["key"], found["rows"], found["shape"]) == (KEY, 10, [2, 3])
    stored = np.fromfile(root / entry / "features.bin", np.float32)
    np.testing.assert_array_equal(stored.reshape(10, 2, 3), ROWS)


def test_a_folder_that_cannot_be_written_is_one_line(root, one_line):
    root.parent.mkdir(exist_ok=True)
    root.write_text("a file")
    with one_line(str(root), "$JXFER_CACHE", "--cache.mode memory"):
        on_disk(KEY, FORM, Computes(), LIMIT)


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_full_disk_is_one_line(at, one_line):
    """Files may become no longer than they are: from the start, or after some rows."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def rows(start):
        for row in range(start, 10, 4):
            if row == at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (at * FORM.row_bytes, before[1]))
            yield ROWS[row : row + 4]

    try:
        with one_line("File too large", "free some room"):
            on_disk(KEY, FORM, rows, LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = Computes()
    np.testing.assert_array_equal(on_disk(KEY, FORM, again, LIMIT), ROWS)
    assert again.starts == [at]


def test_an_entry_that_is_being_checked_goes_once_it_is(root):
    on_disk(KEY, FORM, Computes(), LIMIT)
    [entry] = entries(root)
    begun = threading.Event()

    def check():
        with feature_room.lock(root / entry):
            begun.set()
            time.sleep(0.3)

    thread = threading.Thread(target=check)
    thread.start()
    assert begun.wait(30)
    np.testing.assert_array_equal(on_disk({"weights": "b"}, FORM, Computes(), FORM.bytes), ROWS)
    assert entry not in entries(root)
    thread.join()


def test_what_goes_wrong_with_the_images_is_not_the_store_s(root):
    def unreadable(start):
        yield ROWS[:4]
        raise FileNotFoundError("an image")

    with pytest.raises(FileNotFoundError, match="an image"):
        on_disk(KEY, FORM, unreadable, LIMIT)


@pytest.mark.parametrize("max_gb", [0.0, -1.0])
def test_the_limit_must_be_positive(max_gb, one_line):
    with one_line("--cache.max-gb", "above 0"):
        CacheConfig(max_gb=max_gb)


def test_the_room_for_decoded_images_may_be_none_but_not_negative(one_line):
    assert CacheConfig(images_gb=0.0).images_gb == 0
    with one_line("--cache.images-gb -1", "at least 0"):
        CacheConfig(images_gb=-1.0)


@pytest.mark.parametrize("option", [{"max_gb": 1.0}, {"dtype": "bfloat16"}])
def test_without_a_cache_its_options_do_nothing(option, one_line):
    with one_line("do nothing", "--cache.mode off"):
        CacheConfig("off", **option)
