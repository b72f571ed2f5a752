"""torchvision's names, and the downloader under them, against a loopback server."""

import hashlib
import importlib.util
import io
import re
import subprocess
import sys

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
import torch

from jxfer.disk import cache_dir
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.zoo import download, imagenet, torchvision, weights
from tests import torch_reference
from tests.runs import flip_a_bit
from tests.zoo.server import File, Server

NAME = "torchvision:resnet18.MADE_UP"


@pytest.fixture(scope="session")
def state():
    reference = torch_reference.create("resnet18", 1000)
    torch_reference.randomise(reference, seed=0)
    return reference.state_dict()


@pytest.fixture
def file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return File(buffer.getvalue())


@pytest.fixture
def server(file, monkeypatch, tmp_path):
    """A server that publishes one more file of ResNet-18 weights, with its true hash."""
    server = Server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    name = f"resnet18-{hashlib.sha256(file.content).hexdigest()[:8]}.pth"
    server.files[f"/models/{name}"] = file
    monkeypatch.setattr(torchvision, "BASE_URL", f"{server.url}/models")
    monkeypatch.setitem(
        torchvision.WEIGHTS, "resnet18", {"MADE_UP": (name, 232, 69.5), "OTHER": ("a-0.pth", 1, 1)}
    )
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    yield server
    server.close()


def test_the_file_is_downloaded_once_and_described(server, file, state):
    found = weights.load(NAME)
    card = found.card
    assert (card.name, card.arch, card.dataset) == (NAME, "resnet18", "ImageNet-1k")
    assert card.source.startswith(server.url)
    assert card.source_sha256 == hashlib.sha256(file.content).hexdigest()
    assert card.class_names == imagenet.class_names()
    assert card.reported_accuracy == pytest.approx(0.695)
    assert round(card.preprocessing.size / card.preprocessing.crop) == 232
    kernel = found.variables["params"]["head"]["linear"]["kernel"]
    np.testing.assert_array_equal(kernel, state["fc.weight"].numpy().T)
    weights.load(NAME)
    assert len(server.got(".pth")) == 1
    assert [path.suffix for path in sorted((cache_dir() / "torchvision").iterdir())] in (
        [".pth"],
        [".pth", ".lock"],
    )


def test_without_a_version_the_last_is_taken(server, one_line):
    with one_line("/models/a-0.pth", "404"):
        weights.load("torchvision:resnet18")


def test_a_dropped_connection_is_taken_up_where_it_broke(server, file):
    file.drop_after = 30_000_000
    weights.load(NAME)
    first, second = server.got(".pth")
    assert first is None
    assert int(re.fullmatch(r"bytes=(\d+)-", second)[1]) > 10_000_000


def test_a_later_call_takes_up_what_an_earlier_one_left(server, file, one_line, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 0)
    file.drop_after = 30_000_000
    with one_line(server.url, "the same command resumes"):
        weights.load(NAME)
    (part,) = (cache_dir() / "torchvision").glob("*.part")
    have = part.stat().st_size
    weights.load(NAME)
    assert server.got(".pth")[-1] == f"bytes={have}-"
    assert not part.exists()


def test_a_server_without_ranges_starts_again(server, file):
    file.drop_after, file.ranges = 30_000_000, False
    weights.load(NAME)
    assert len(server.got(".pth")) == 2


def test_a_file_that_was_whole_but_not_yet_renamed_is_taken(server, file):
    folder = cache_dir() / "torchvision"
    folder.mkdir(parents=True)
    name = torchvision.WEIGHTS["resnet18"]["MADE_UP"][0]
    (folder / f"{name}.part").write_bytes(file.content)
    weights.load(NAME)
    assert (folder / name).is_file()


@pytest.mark.parametrize("fault", ["damaged", "truncated"])
def test_another_content_is_refused_and_not_kept(fault, server, file, one_line):
    setattr(file, fault, True)
    with one_line(server.url, "sha256", "nothing was kept"):
        weights.load(NAME)
    assert not [p for p in (cache_dir() / "torchvision").iterdir() if p.suffix != ".lock"]
    setattr(file, fault, False)
    weights.load(NAME)


def test_a_connection_that_always_breaks_ends_with_one_line(server, file, one_line):
    file.drop_after, file.drop_always = 0, True
    with one_line(server.url, "no connection, or it broke off", "resumes"):
        weights.load(NAME)
    assert len(server.got(".pth")) == download.ATTEMPTS


def test_a_connection_that_always_breaks_a_little_later_gets_there(server, file):
    file.drop_after, file.drop_always = 8_000_000, True
    weights.load(NAME)
    assert len(server.got(".pth")) > download.ATTEMPTS


def kept() -> list[str]:
    folder = cache_dir() / "torchvision"
    return [file.name for file in folder.iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize(
    "place",
    ["http://elsewhere.invalid/w.pth", "file:///etc/passwd", "ftp://127.0.0.1/w", "/models/b", ""],
)
def test_no_redirect_is_followed(place, server, file, one_line):
    file.redirect = place
    with one_line(server.url, f"redirects to {place}", "not followed"):
        weights.load(NAME)
    assert len(server.requests) == 1
    assert not kept()


def test_a_response_that_never_ends_is_cut_off(server, file, one_line, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 5_000_000)
    file.endless = True
    with one_line(server.url, "more than 5,000,000 bytes", "nothing is kept"):
        weights.load(NAME)
    assert not kept()


def test_a_server_that_trickles_is_given_up_and_the_same_call_resumes(
    server, one_line, monkeypatch, tmp_path
):
    monkeypatch.setattr(download, "_STRETCH", 0.2)
    file = server.files["/slow"] = File(bytes(range(200)), pause=0.03)
    url, target = f"{server.url}/slow", tmp_path / "slow"
    digest = hashlib.sha256(file.content).hexdigest()
    with one_line(url, "fewer than 1,024 a second", "the same command resumes"):
        download.fetch(url, target, digest)
    came = (tmp_path / "slow.part").read_bytes()
    assert 0 < len(came) < 200
    monkeypatch.setattr(download, "_LEAST", 0.01)
    file.pause = 0.003
    download.fetch(url, target, digest)
    assert server.got("slow") == [None, f"bytes={len(came)}-"]
    assert target.read_bytes() == file.content


def test_too_large_a_file_is_not_begun(server, file, one_line):
    file.announced = str(10**12)
    with one_line(server.url, "announces 1,000,000,000,000 bytes", "2,147,483,648"):
        weights.load(NAME)
    assert not kept()


@pytest.mark.parametrize("length", ["many", "-5", "\u0664"])
def test_a_length_that_is_no_number_is_no_length(length, server, file):
    file.announced = length.encode().decode("latin-1")
    weights.load(NAME)


def test_a_kept_file_that_was_damaged_is_downloaded_again(server, file, state):
    weights.load(NAME)
    (kept,) = (cache_dir() / "torchvision").glob("*.pth")
    flip_a_bit(kept)
    found = weights.load(NAME)
    assert found.card.source_sha256 == hashlib.sha256(file.content).hexdigest()
    assert len(server.got(".pth")) == 2


def test_a_cache_that_others_filled_need_not_be_writable(server, monkeypatch):
    card = weights.load(NAME).card

    def refuse(*args):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(download.filelock, "FileLock", refuse)
    assert weights.load(NAME).card == card


def test_a_proxy_is_asked_where_one_is_set(server, monkeypatch):
    monkeypatch.setattr(torchvision, "BASE_URL", "http://publisher.invalid/models")
    monkeypatch.setenv("http_proxy", server.url)
    weights.load(NAME)
    ((_, path, _),) = server.requests
    assert path.startswith("http://publisher.invalid/models/resnet18-")


def test_offline_mode_takes_what_is_kept_and_downloads_nothing(server, one_line, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with one_line("resnet18-", "HF_HUB_OFFLINE forbids"):
        weights.load(NAME)
    assert not server.requests
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    card = weights.load(NAME).card
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert weights.load(NAME).card == card


def test_two_processes_do_not_mix(server, file, tmp_path):
    """Both ask for the file at once; one downloads it, and both have it whole."""
    name = torchvision.WEIGHTS["resnet18"]["MADE_UP"][0]
    program = (
        "import pathlib, sys; from jxfer.zoo import download; "
        "download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])"
    )
    target = tmp_path / "both" / name
    arguments = (f"{server.url}/models/{name}", str(target), name[-12:-4])
    both = [subprocess.Popen([sys.executable, "-c", program, *arguments]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert target.read_bytes() == file.content
    assert len(server.got(".pth")) == 1


def test_a_cache_that_cannot_be_written(server, one_line, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path / "file"))
    with one_line("file", "cannot be written"):
        weights.load(NAME)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:resnet20", ("no such weights", "resnet18")),
        ("torchvision:", ("no such weights",)),
        ("torchvision:resnet18.IMAGENET22K", ("only MADE_UP, OTHER",)),
    ],
)
def test_unknown_names(name, words, server, one_line):
    with one_line(name, *words):
        weights.load(name)
    assert not server.requests


def test_without_pytorch_nothing_is_downloaded(server, one_line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with one_line("jxfer[torch]"):
        weights.load(NAME)
    assert not server.requests


@pytest.mark.parametrize("arch", torchvision.WEIGHTS)
def test_the_table_names_known_architectures_and_hashed_files(arch):
    assert registry.architecture(arch).num_classes == 1000
    for file, resize, accuracy in torchvision.WEIGHTS[arch].values():
        assert re.fullmatch(rf"{arch}(-owt)?-[0-9a-f]{{8}}\.pth", file)
        assert resize in (232, 256)
        assert 50 < accuracy < 100


def test_every_architecture_of_torchvision_is_in_the_table():
    others = {"resnet18d", "resnet50d"}  # timm's
    ours = {row.name for row in ARCHITECTURES.values() if row.num_classes == 1000}
    assert ours - others == set(torchvision.WEIGHTS)
