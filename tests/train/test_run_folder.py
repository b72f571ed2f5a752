import dataclasses
import json

import pytest

from jxfer import disk, sealed
from jxfer.errors import UserError
from jxfer.train import config as configs
from jxfer.train import run_folder
from jxfer.train.feature_store import CacheConfig


@pytest.fixture
def config(small_config):
    return small_config()


def open_once(folder, config):
    with run_folder.open_run(folder, config):
        run_folder.write_config(folder, config)


def test_a_new_folder_gets_its_parents_and_the_config(tmp_path, config):
    run = tmp_path / "sweep" / "first"
    open_once(run, config)
    found = json.loads((run / "config.json").read_text())
    assert sealed.unseal(found, "config.json") == configs.to_dict(config)
    assert run_folder.read_config(run) == config
    assert run_folder.read_summary(run) is None


def test_a_run_that_never_started_leaves_the_folder_to_another_config(tmp_path, config):
    with run_folder.open_run(tmp_path, config):
        pass
    open_once(tmp_path, dataclasses.replace(config, seed=config.seed + 1))


def test_the_same_config_opens_the_folder_again(tmp_path, config):
    open_once(tmp_path, config)
    written = (tmp_path / "config.json").stat().st_mtime_ns
    open_once(tmp_path, config)
    assert (tmp_path / "config.json").stat().st_mtime_ns == written


def test_another_config_is_refused_with_every_difference(tmp_path, config, small_config, one_line):
    open_once(tmp_path, config)
    with one_line(str(tmp_path), "epochs 4.0 -> 5.0", "seed 0 -> 1", "take a new folder"):
        open_once(tmp_path, small_config(epochs=5.0, seed=1))
    assert run_folder.read_config(tmp_path) == config


@pytest.mark.parametrize("fields", [{"mode": "memory"}, {"mode": "disk", "max_gb": 9.0}])
def test_features_may_move_between_memory_and_disk(fields, tmp_path, small_config):
    open_once(tmp_path, small_config(cache=CacheConfig("disk")))
    open_once(tmp_path, small_config(cache=CacheConfig(**fields)))


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_run_keeps_whether_it_was_told_to_cache(mode, tmp_path, small_config, one_line):
    open_once(tmp_path, small_config(cache=CacheConfig("disk")))
    with one_line("cache.mode 'disk' ->"):
        open_once(tmp_path, small_config(cache=CacheConfig(mode)))


def test_bad_input_leaves_no_new_folder_behind(tmp_path, config):
    with pytest.raises(UserError), run_folder.open_run(tmp_path / "run", config):
        raise UserError("a typo")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, config, one_line):
    (tmp_path / "file").write_text("")
    with one_line("--run", "name another folder"):
        open_once(tmp_path / "file" / "run", config)


def test_a_config_of_another_version_shows_the_fields_that_differ(tmp_path, config, one_line):
    open_once(tmp_path, config)
    values = configs.to_dict(config)
    values["gone"] = 3
    disk.write_json(tmp_path / "config.json", values)
    with one_line("gone 3 -> None"):
        open_once(tmp_path, config)
    with one_line("config.json", "gone"):
        run_folder.read_config(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path, config, one_line):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with one_line(str(tmp_path), "thesis.tex", "--run"):
        open_once(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_run_folder(tmp_path, config, one_line):
    (tmp_path / "run").write_text("")
    with one_line("is a file"):
        open_once(tmp_path / "run", config)


def test_a_folder_that_a_kill_left_with_the_lock_alone_can_be_used(tmp_path, config):
    (tmp_path / ".lock").touch()
    open_once(tmp_path, config)
    assert run_folder.read_config(tmp_path) == config


def test_a_config_that_a_kill_cut_off_is_no_config(tmp_path, config):
    """`disk.write_json` renames a finished file, so a kill leaves the `.tmp` alone."""
    (tmp_path / "config.json.tmp").write_text('{"data": {"sou')
    open_once(tmp_path, config)
    assert run_folder.read_config(tmp_path) == config


def test_two_may_not_hold_a_run_at_once(tmp_path, config, one_line):
    with (
        run_folder.open_run(tmp_path, config),
        one_line(str(tmp_path), "another process is training here"),
    ):
        open_once(tmp_path, config)
    open_once(tmp_path, config)


def test_an_error_lets_go_of_the_run(tmp_path, config):
    with pytest.raises(ZeroDivisionError), run_folder.open_run(tmp_path, config):
        raise ZeroDivisionError
    open_once(tmp_path, config)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "{}"])
def test_a_folder_without_a_readable_config_is_no_run(text, tmp_path, one_line):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with one_line(str(tmp_path), "config.json"):
        run_folder.read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_config_in_a_run_folder_is_an_error_of_one_line(text, tmp_path, config, one_line):
    (tmp_path / "config.json").write_text(text)
    with one_line(str(tmp_path)):
        open_once(tmp_path, config)
