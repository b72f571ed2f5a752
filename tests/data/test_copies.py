from jxfer.data import copies, remote

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
