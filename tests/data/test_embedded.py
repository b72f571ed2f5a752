import multiprocessing

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jxfer.data import embedded, transforms
from jxfer.data.sources import TfdsSource
from jxfer.errors import UserError


@pytest.mark.parametrize(
    ("split", "rows"), [("train", slice(0, 1297)), ("test", slice(1297, None))]
)
def test_digits_are_those_of_scikit_learn(split, rows):
    digits = load_digits()
    source = TfdsSource(embedded.open_embedded("digits"), split)
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(source.labels, digits.target[rows])
    decoded = np.stack(
        [transforms.decode(e.image, e.name) for e in map(source.__getitem__, range(len(source)))]
    )
    np.testing.assert_array_equal(decoded, np.repeat(decoded[..., :1], 3, axis=-1))
    np.testing.assert_allclose(decoded[..., 0] * (16 / 255), digits.images[rows], atol=0.04)
    np.testing.assert_array_equal(np.rint(decoded[..., 0] * (16 / 255)), digits.images[rows])


def test_preparing_says_nothing_on_stdout_and_leaves_no_scratch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    killed = tmp_path / "embedded" / "digits" / ".preparing" / "digits"
    killed.mkdir(parents=True)
    (killed / "half").write_text("left by a process that was killed")
    embedded.open_embedded("digits")
    assert capsys.readouterr().out == ""
    assert [path.name for path in (tmp_path / "embedded" / "digits").iterdir()] == ["1.0.0"]
    killed.mkdir(parents=True)  # by a kill after the set had its name
    embedded.open_embedded("digits")
    assert [path.name for path in (tmp_path / "embedded" / "digits").iterdir()] == ["1.0.0"]


def test_the_loser_of_a_race_reads_what_the_winner_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    embedded.open_embedded("digits")
    folder = tmp_path / "embedded" / "digits" / "1.0.0"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    embedded._prepare(embedded.Digits, folder)  # as a process that had not seen the folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]


def test_a_set_that_was_damaged_is_told_and_prepared_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    embedded.open_embedded("digits")
    folder = tmp_path / "embedded" / "digits" / "1.0.0"
    names = (folder / "label.labels.txt").read_bytes()
    (folder / "label.labels.txt").write_bytes(names.replace(b"3", b"2"))
    found = embedded.open_embedded("digits")
    assert found.info.features["label"].names[3] == "3"
    assert f"{folder} is damaged, or of an earlier version" in caplog.text
    kept = {path.name for path in folder.parent.iterdir()}
    assert kept <= {"1.0.0", ".1.0.0.lock"}  # filelock removes its file on some systems


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_count, ["digits"] * 2, chunksize=1) == [1797, 1797]


def _count(name: str) -> int:
    return embedded.open_embedded(name).info.splits.total_num_examples


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot prepare digits in .*JXFER_CACHE") as error:
        embedded.open_embedded("digits")
    assert "\n" not in str(error.value)


def test_glyphs_have_the_letters_of_emnist_balanced_in_turn_and_no_digit():
    names = embedded.Glyphs.class_names
    assert len(names) == len(set(names)) == 37
    assert not set(names) & set("0123456789")
    assert set(names) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") | set("abdefghnqrt")


def test_rendered_digits_have_the_classes_of_the_handwritten_ones():
    assert embedded.EMBEDDED["rendered_digits"].class_names == tuple("0123456789")
    assert embedded.RenderedDigits.class_names == embedded.Digits.class_names


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("glyphs", 37), ("rendered_digits", 10)])
def test_a_rendered_set_is_balanced_and_test_differs_from_train(name, classes):
    builder = embedded.open_embedded(name)
    train, test = (TfdsSource(builder, split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.labels, np.tile(np.arange(classes), 600))
    np.testing.assert_array_equal(test.labels, np.tile(np.arange(classes), 100))
    first = {train[i].image for i in range(0, len(train), 10)}
    assert len(first) == len(range(0, len(train), 10))
    assert not first & {test[i].image for i in range(len(test))}
