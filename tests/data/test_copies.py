import pytest

from jxfer.data import copies, remote
from tests.rot import faults

URL = "gs://some-bucket"


def test_a_copy_is_made_once_and_follows_the_bucket(bucket):
    for name in ("one/card.json", "one/tensors/0", "one/checkpoints/3/0", "oneness"):
        remote.write(f"{URL}/zoo/{name}", name.encode())
    copied = copies.local(f"{URL}/zoo/one")
    found = {p.relative_to(copied).as_posix(): p.read_text() for p in copied.rglob("*.*")}
    assert copied.name == "one"
    assert found == {"card.json": "one/card.json"}
    assert (copied / "tensors" / "0").read_text() == "one/tensors/0"
    assert not (copied / "checkpoints").exists()  # of a run, nothing but training needs them
    assert copies.is_copy(copied)
    assert copies.local(f"{URL}/zoo/one/") == copied

    remote.write(f"{URL}/zoo/one/card.json", b"another")
    newer = copies.local(f"{URL}/zoo/one")
    assert (newer / "card.json").read_text() == "another"
    assert (copied / "card.json").read_text() == "one/card.json"


def test_a_single_object_is_copied_and_nothing_is_an_error(bucket, one_line):
    remote.write(f"{URL}/nets/net.safetensors", b"tensors")
    copied = copies.local(f"{URL}/nets/net.safetensors")
    assert (copied.name, copied.read_bytes()) == ("net.safetensors", b"tensors")
    with one_line(f"{URL}/nets/net", "nothing of that name"):
        copies.local(f"{URL}/nets/net")


@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.parametrize("name", ["one/card.json", "one/tensors/0", "checksums.json"])
def test_a_damaged_copy_is_told_and_made_again(name, fault, bucket, caplog):
    for path in ("card.json", "tensors/0"):
        remote.write(f"{URL}/zoo/one/{path}", path.encode())
    copied = copies.local(f"{URL}/zoo/one")
    assert copies.local(f"{URL}/zoo/one") == copied
    assert "damaged" not in caplog.text
    faults.inflict(fault, copied.parent / name)
    assert copies.local(f"{URL}/zoo/one") == copied
    assert f"{copied} is damaged" in caplog.text
    assert (copied / "card.json").read_text() == "card.json"
    assert (copied / "tensors" / "0").read_text() == "tensors/0"
    found = {path.name for path in copied.parent.iterdir()}
    assert found == {"one", "checksums.json"}


def test_of_a_large_copy_the_sizes_count(bucket, monkeypatch):
    remote.write(f"{URL}/data/one/0", b"pixels")
    copied = copies.local(f"{URL}/data/one")
    monkeypatch.setattr(copies, "_MOST_READ", 3)
    for content, again in ((b"pixelz", False), (b"pixel", True)):
        (copied / "0").write_bytes(content)
        copies.local(f"{URL}/data/one")
        assert ((copied / "0").read_bytes() == b"pixels") == again
