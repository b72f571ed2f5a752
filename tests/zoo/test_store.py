"""Entries on disk: saved and loaded whole; what is damaged or hostile is refused."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer import trees
from jxfer.errors import UserError
from jxfer.zoo import store, zoos
from tests.runs import flip_a_bit, largest_file


def test_round_trip(tmp_path, card, variables):
    saved = store.save(tmp_path / "deep" / "zoo" / "small", card, variables)
    loaded, restored = store.load(tmp_path / "deep" / "zoo" / "small")
    assert loaded == saved
    assert saved.parameters == trees.size(variables["params"])
    assert saved.tensors_sha256 == trees.sha256(variables)
    assert saved.jxfer_version != ""
    filled = ("parameters", "jxfer_version", "tensors_sha256", "files_sha256")
    assert dataclasses.replace(saved, **{name: getattr(card, name) for name in filled}) == card
    want, got = trees.flatten(variables), trees.flatten(restored)
    assert want.keys() == got.keys()
    for path, leaf in got.items():
        assert type(leaf) is np.ndarray
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, want[path])


def test_device_arrays_are_saved_as_host_arrays(tmp_path, card, variables):
    saved = store.save(tmp_path / "e", card, jax.tree.map(jnp.asarray, variables))
    assert saved.tensors_sha256 == trees.sha256(variables)
    assert store.load(tmp_path / "e")[0] == saved


def test_the_entry_holds_no_path_of_the_machine_and_fewer_files_than_tensors(entry, variables):
    files = [file for file in entry.rglob("*") if file.is_file()]
    # How many depends on when Orbax flushes: more on a busy machine.
    assert len(files) < len(trees.flatten(variables))
    for file in files:
        assert str(entry.parent.parent).encode() not in file.read_bytes(), file
        assert b".new-" not in file.read_bytes(), file
    assert [path.name for path in entry.parent.iterdir()] == ["small"]


def test_an_entry_is_not_overwritten_unless_asked(one_line, entry, card, variables):
    with one_line("small exists"):
        store.save(entry, card, variables)
    store.save(entry, dataclasses.replace(card, notes="second"), variables, overwrite=True)
    assert store.load(entry)[0].notes == "second"
    assert [path.name for path in entry.parent.iterdir()] == ["small"]


def test_what_is_no_entry_is_never_overwritten(one_line, tmp_path, card, variables):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with one_line("thesis", "no zoo entry"):
        store.save(tmp_path / "thesis", card, variables, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_a_failed_save_leaves_the_old_entry(entry, card, variables, monkeypatch):
    def fail(folder, variables):
        folder.mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(store, "_write_tensors", fail)
    with pytest.raises(UserError, match="disk full"):
        store.save(entry, card, variables, overwrite=True)
    store.verify(entry)
    assert [path.name for path in entry.parent.iterdir()] == ["small"]


def test_a_flipped_byte_in_any_file_is_detected(one_line, entry):
    for file in sorted(file for file in (entry / "tensors").rglob("*") if file.is_file()):
        content = file.read_bytes()
        flip_a_bit(file)
        with one_line("small", "damaged"):
            store.load(entry)
        file.write_bytes(content)
    store.verify(entry)


def test_a_missing_or_truncated_file_is_detected(one_line, entry):
    largest = largest_file(entry / "tensors")
    largest.write_bytes(largest.read_bytes()[:-1])
    with one_line("damaged"):
        store.load(entry)
    largest.unlink()
    with one_line("damaged"):
        store.load(entry)
    shutil.rmtree(entry / "tensors")
    with one_line("tensors", "missing"):
        store.load(entry)


def test_tensors_are_compared_too_where_the_files_agree(one_line, entry, card, variables):
    """Other tensors with files that match their own digest: only the tensors' digest can tell."""
    right = store.read_card(entry)
    store.save(entry, card, {**variables, "batch_stats": {}}, overwrite=True)
    other = store.read_card(entry)
    mixed = dataclasses.replace(right, files_sha256=other.files_sha256)
    (entry / "card.json").write_text(mixed.to_json())
    with one_line("tensors_sha256"):
        store.load(entry)


def test_a_checkpoint_that_orbax_refuses_is_one_line(one_line, entry):
    (entry / "tensors" / "_METADATA").write_text("{}")
    digest = store._files_sha256(entry / "tensors")
    card = dataclasses.replace(store.read_card(entry), files_sha256=digest)
    (entry / "card.json").write_text(card.to_json())
    with one_line("tensors", "cannot be restored", "import the entry again"):
        store.load(entry)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": "resnet21"}, ("unknown architecture 'resnet21'",)),
        ({"arch": "resnet32"}, ("missing batch_stats/stage1/block3/norm1/mean",)),
        ({"class_names": ("cat", "dog")}, ("head/linear/kernel has shape (64, 3)", "(64, 2)")),
        ({"class_names": ()}, ("unexpected params/head/linear/kernel",)),
        ({"through": "stage9"}, ("resnet20 has no stage 'stage9'",)),
        ({"through": "stage2"}, ("unexpected batch_stats/stage3/block0/norm1/mean",)),
    ],
)
def test_a_card_of_another_network(one_line, entry, change, words):
    card = dataclasses.replace(store.read_card(entry), **change)
    (entry / "card.json").write_text(card.to_json())
    for read in (store.load, store.verify):
        with one_line("small/card.json", *words):
            read(entry)


def test_a_file_where_a_folder_should_be(one_line, tmp_path, card, variables, no_zoos):
    file = tmp_path / "file"
    file.write_text("text")
    with one_line(f"{file} exists"):
        store.save(file, card, variables)
    with one_line(f"{file} is no zoo entry"):
        store.save(file, card, variables, overwrite=True)
    with one_line(f"{file}: no folder can be made"):
        store.save(file / "small", card, variables)
    with one_line(f"{file}: holds neither card.json nor model/card.json", "a finished run"):
        zoos.resolve(file)
    with one_line(f"--zoo {file}: no such folder"):
        zoos.search_path(str(file))
    with one_line(f"{file / 'card.json'}: missing"):
        store.load(file)
    assert file.read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pickle_in_an_entry_is_never_run(one_line, entry, tmp_path):
    """Whoever can change the files can change their digest too."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (mark,))

    for file in (entry / "tensors").rglob("*"):
        if file.is_file():
            file.write_bytes(pickle.dumps(Evil()))
    digest = store._files_sha256(entry / "tensors")
    card = dataclasses.replace(store.read_card(entry), files_sha256=digest)
    (entry / "card.json").write_text(card.to_json())
    with one_line("tensors", "cannot be restored", "import the entry again"):
        store.load(entry)
    (entry / "card.json").write_bytes(pickle.dumps(Evil()))
    with one_line("card.json", "UTF-8"):
        store.load(entry)
    assert not mark.exists()


def test_a_link_out_of_an_entry_is_refused(one_line, entry, tmp_path):
    """A folder, and a file in one; a link within the entry is followed."""
    inner = entry / "tensors" / "d"
    file = next(path for path in inner.iterdir() if path.is_file())
    file.rename(entry / "moved")
    file.symlink_to(entry / "moved")
    store.load(entry)
    (entry / "moved").rename(tmp_path / "outside")
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    with one_line(str(file), "a link out of the entry"):
        store.load(entry)
    file.unlink()
    (tmp_path / "outside").rename(file)
    store.load(entry)
    (entry / "tensors").rename(tmp_path / "tensors")
    (entry / "tensors").symlink_to(tmp_path / "tensors")
    with one_line("tensors", "a link out of the entry"):
        store.load(entry)


def test_a_link_to_an_entry_is_an_entry(entry, tmp_path):
    (tmp_path / "link").symlink_to(entry)
    assert store.load(tmp_path / "link")[0] == store.load(entry)[0]


@pytest.mark.parametrize("name", ["../../escape", "/escape", "a\nb", "\x1b[2J"])
def test_what_a_card_calls_itself_is_no_path(name, entry, card, variables, tmp_path):
    """An entry is found, shown and kept by its folder's name."""
    saved = store.save(entry, dataclasses.replace(card, name=name), variables, overwrite=True)
    assert store.load(entry)[0] == saved
    assert {path.name for path in tmp_path.iterdir()} == {"zoo"}
    assert [path.name for path in entry.parent.iterdir()] == ["small"]


def test_hidden_files_do_no_harm(entry):
    (entry / "tensors" / ".DS_Store").touch()
    store.verify(entry)


def test_a_missing_or_broken_card(one_line, entry):
    (entry / "card.json").write_bytes(b"\xff\xfe")
    with one_line("card.json", "UTF-8"):
        store.load(entry)
    (entry / "card.json").unlink()
    with one_line("card.json", "missing"):
        store.load(entry)
