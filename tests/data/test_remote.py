import pathlib
import sys
import threading
import types

import pytest

from jxfer.data import remote
from jxfer.errors import UserError

URL = "gs://some-bucket"


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("gs://some-bucket", "gs://some-bucket"),
        ("gs://some-bucket/a/b/", "gs://some-bucket/a/b"),
        (pathlib.Path("gs://some-bucket/a b"), "gs://some-bucket/a b"),  # folded by pathlib
        ("runs/gs", None),
        (pathlib.Path("/gs/some-bucket"), None),
    ],
)
def test_an_address_is_told_from_a_path(place, found):
    assert remote.address(place) == found


@pytest.mark.parametrize(
    "place",
    [
        "gs://",
        "gs://UPPER/a",
        "gs://some-bucket/../a",
        "gs://some-bucket//a",
        "gs://me:secret@some-bucket/a",
        "gs://some-bucket/a?token=secret",
        "gs://some-bucket/a\n",
    ],
)
def test_no_other_address_is_taken_or_repeated(place):
    with pytest.raises(UserError, match=r"gs://BUCKET/PATH, without") as caught:
        remote.address(place)
    assert "secret" not in str(caught.value)


def test_without_the_extra_one_line_names_it(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with one_line("pip install 'jxfer[gcs]'"):
        remote.listing(URL)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client leaves sockets to the collector
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "no valid Google credentials"),
        (403, "access is denied"),
        (404, "there is no bucket some-bucket"),
        (503, "503)"),
    ],
)
def test_what_a_bucket_refuses_is_one_line(status, words, bucket, one_line):
    bucket.status = status
    with one_line(f"{URL}/a", words):
        remote.listing(f"{URL}/a")
    if status != 404:  # an object that is not there is no error
        with one_line(f"{URL}/a", words):
            remote.read(f"{URL}/a")
    with one_line(f"{URL}/a", words):
        remote.write(f"{URL}/a", b"content")


def test_missing_credentials_are_one_line(bucket, monkeypatch, one_line, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    monkeypatch.setattr(remote, "_local", threading.local())
    with one_line(URL, "no valid Google credentials", "gcloud auth"):
        remote.listing(URL)


def test_an_object_that_would_leave_the_folder_is_refused(bucket, monkeypatch, one_line):
    blob = types.SimpleNamespace(name="a/../../b", size=1, generation=1)
    listed = types.SimpleNamespace(list_blobs=lambda **_: [blob])
    monkeypatch.setattr(remote, "_bucket", lambda _: listed)
    with one_line(URL, "a name that no file can have"):
        remote.listing(f"{URL}/a")


def test_what_must_be_new_replaces_nothing(bucket):
    assert remote.write(f"{URL}/a", b"first", new=True)
    assert not remote.write(f"{URL}/a", b"second", new=True)
    assert remote.read(f"{URL}/a") == b"first"
    assert remote.write(f"{URL}/a", b"third")
    assert remote.read(f"{URL}/a") == b"third"
