import importlib.util
import shutil

import pytest

from jxfer.data import embedded, prepared
from jxfer.data.readers import TfdsSource
from jxfer.errors import UserError


@pytest.fixture
def prepared_digits(tmp_path):
    """The digits' files under other names: a data_dir with one plain set and one with configs."""
    source = embedded.open_embedded("digits").data_dir
    for folder in (
        "plain/1.0.0",
        "plain/2.0.0",
        "plain/10.0.0",
        "many/red/1.0.0",
        "many/blue/1.0.0",
    ):
        shutil.copytree(source, tmp_path / folder)
    shutil.copytree(source, tmp_path / "single/only/3.0.1")
    (tmp_path / "plain/11.0.0").mkdir()  # incomplete: no dataset_info.json
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("plain", "plain/10.0.0"),
        ("plain:2.0.0", "plain/2.0.0"),
        ("many/blue", "many/blue/1.0.0"),
        ("many/red:1.0.0", "many/red/1.0.0"),
        ("single", "single/only/3.0.1"),
        ("single:3.0.1", "single/only/3.0.1"),
    ],
)
def test_the_version_folder_is_found(prepared_digits, spec, folder):
    builder = prepared.open_prepared(spec, str(prepared_digits))
    assert str(builder.data_dir) == str(prepared_digits / folder)


def test_the_default_folder_is_that_of_tfds(prepared_digits, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_digits))
    assert prepared.open_prepared("plain", None).info.splits["test"].num_examples == 500


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("many", r"several configs; name one of blue, red, as in tfds:many/blue"),
        ("plain:2", r"tfds:plain:2: expected tfds:NAME\[/CONFIG\]\[:MAJOR.MINOR.PATCH\]"),
        ("../plain", r"expected tfds:NAME"),
    ],
)
def test_ambiguous_and_malformed_specs_are_refused(prepared_digits, spec, message):
    with pytest.raises(UserError, match=message) as error:
        prepared.open_prepared(spec, str(prepared_digits))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["no_such_set", "plain:9.9.9", "many/green"])
def test_a_set_that_nobody_has_is_named(prepared_digits, spec):
    message = rf"tfds:{spec} is not prepared in .* TFDS has no dataset {spec[:4]}"
    with pytest.raises(UserError, match=message) as error:
        prepared.open_prepared(spec, str(prepared_digits))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["mnist", "mnist:3.0.1", "cifar10_corrupted/fog_1"])
def test_without_tensorflow_a_stock_set_names_the_extra(tmp_path, monkeypatch, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = rf"tfds:{spec} is not prepared in .*pip install 'jxfer\[prepare\]'"
    with pytest.raises(UserError, match=message) as error:
        prepared.open_prepared(spec, str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_failed_preparation_is_one_line(tmp_path, monkeypatch):
    def fail(self, **kwargs):
        raise OSError("no route\nto host")

    import tensorflow_datasets as tfds

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        UserError, match=r"tfds:mnist could not be prepared .* OSError: no route to"
    ):
        prepared.open_prepared("mnist", str(tmp_path))


def test_a_bucket_holds_the_same_records(prepared_digits, bucket, one_line):
    where = bucket.upload(prepared_digits, "sets")
    for spec in ("plain", "many/blue:1.0.0", "single"):
        found, wanted = (
            TfdsSource(prepared.open_prepared(spec, place), "test")
            for place in (where, str(prepared_digits))
        )
        assert len(found) == len(wanted) == 500
        assert [found[i] for i in (0, 17, 499)] == [wanted[i] for i in (0, 17, 499)]
    with one_line("tfds:plain:9.0.0", "not prepared", where):
        prepared.open_prepared("plain:9.0.0", where)
