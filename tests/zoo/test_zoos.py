"""Where entries are found: zoos in their order, paths, and buckets."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jxfer import sealed, trees
from jxfer.data import remote
from jxfer.errors import UserError
from jxfer.zoo import store, zoos


def test_search_order(tmp_path, monkeypatch, no_zoos):
    names = ("argument", "variable", "data/jxfer/zoo", "shipped")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("JXFER_ZOO", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(zoos, "_shipped_zoo", lambda: tmp_path / "shipped")
    assert zoos.search_path(str(tmp_path / "argument")) == [tmp_path / name for name in names]
    assert zoos.search_path() == [tmp_path / name for name in names[1:]]
    assert zoos.write_place(str(tmp_path / "new")) == tmp_path / "new"
    assert zoos.write_place() == tmp_path / "variable"
    monkeypatch.delenv("JXFER_ZOO")
    assert zoos.write_place() == tmp_path / "data" / "jxfer" / "zoo"


def test_the_user_zoo_is_in_the_home_folder_by_default(monkeypatch, no_zoos):
    monkeypatch.delenv("XDG_DATA_HOME")
    assert zoos.write_place() == Path.home() / ".local" / "share" / "jxfer" / "zoo"


def test_a_zoo_that_is_named_must_exist(one_line, tmp_path, no_zoos):
    with one_line("--zoo", "nowhere"):
        zoos.search_path(str(tmp_path / "nowhere"))


def test_resolve(one_line, tmp_path, entry, monkeypatch, no_zoos):
    zoo = str(entry.parent)
    assert zoos.resolve("small", zoo) == entry
    assert zoos.resolve(str(entry)) == entry
    run = tmp_path / "run"
    shutil.copytree(entry, run / "model")
    assert zoos.resolve(run) == run / "model"
    with one_line("'smal'", "did you mean small?", zoo):
        zoos.resolve("smal", zoo)
    with one_line("'small'", "no entries"):
        zoos.resolve("small")
    with one_line(str(tmp_path), "card.json"):
        zoos.resolve(tmp_path)
    # A local path wins over a name.
    monkeypatch.chdir(tmp_path)
    run.rename("small")
    assert zoos.resolve("small", zoo).resolve() == tmp_path / "small" / "model"


def test_list_zoo(tmp_path, entry, card, variables, monkeypatch, no_zoos):
    second = tmp_path / "second"
    store.save(second / "other", card, variables)
    shutil.copytree(entry, second / "small")
    shutil.copytree(entry, second / ".half.new-1")
    monkeypatch.setenv("JXFER_ZOO", str(second))
    entries = zoos.list_zoo(str(entry.parent))
    assert [(e.name, e.path) for e in entries] == [("other", second / "other"), ("small", entry)]
    assert entries[1].card == store.read_card(entry)
    monkeypatch.delenv("JXFER_ZOO")
    assert zoos.list_zoo() == []


def test_all_shipped_entries_are_whole():
    cards = sorted(zoos._shipped_zoo().glob("*/card.json"))
    assert [card.parent.name for card in cards] == ["resnet20-cifar100", "resnet20-glyphs"]
    for card in cards:
        try:
            assert store.verify(card.parent).name == card.parent.name
            assert sealed.CHECKSUM in json.loads(card.read_text())
        except UserError as error:
            pytest.fail(str(error))


def test_an_entry_in_a_bucket_is_found_loaded_and_replaced(
    bucket, no_zoos, card, variables, one_line
):
    zoo = "gs://some-bucket/zoo"
    saved = store.save(f"{zoo}/small", card, variables)
    assert bucket.writes[-1] == "zoo/small/card.json"
    [listed] = zoos.list_zoo(zoo)
    assert (listed.name, listed.card) == ("small", saved)
    for name, where in ((f"{zoo}/small", None), ("small", zoo)):
        loaded, restored = store.load(zoos.resolve(name, where))
        assert loaded == saved
        assert trees.sha256(restored) == trees.sha256(variables)

    with one_line(f"{zoo}/small exists"):
        store.save(f"{zoo}/small", card, variables)
    again = dataclasses.replace(card, notes="second")
    store.save(f"{zoo}/small", again, variables, overwrite=True)
    assert store.verify(zoos.resolve("small", zoo)).notes == "second"
    # What a kill leaves before the card, which comes last, is in nobody's way.
    remote.delete(f"{zoo}/small", ["card.json"])
    assert bucket.names("zoo/small/tensors")
    store.save(f"{zoo}/small", again, variables)
    assert store.verify(zoos.resolve("small", zoo)).notes == "second"
    with one_line("no path or zoo entry 'smal'", zoo, "did you mean small"):
        zoos.resolve("smal", zoo)
    with one_line(f"{zoo}/other", "nothing of that name"):
        zoos.resolve(f"{zoo}/other")
