"""Shared by all tests: eight fake devices, strict JAX settings, small and real images."""

import contextlib
import gc
import os
import pathlib
import warnings
import zipfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# On a busy machine one of the eight may wait longer than the 40 seconds after which XLA aborts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import cv2
import jax
import numpy as np
import pytest

from jxfer import machine
from jxfer.errors import UserError
from tests import small_experiment

jax.config.update("jax_numpy_rank_promotion", "raise")

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what tests compile, most of their time, in pytest's cache; `--cache-clear` empties it.

    One folder for each number of cores, as `jxfer.train.program_cache` has it. Processes that tests
    start do without: some are killed, and would leave a part of a program there.
    """
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    folder = str(config.cache.mkdir(f"compiled-{machine.visible_cores()}-cores"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", 2**31)  # with a limit JAX takes a lock
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real weights and images; the test is skipped, saying so, without it."""
    folder = pathlib.Path(os.environ.get("JXFER_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set JXFER_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def hymenoptera(test_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The ants and bees of the PyTorch transfer-learning tutorial, unzipped."""
    folder = tmp_path_factory.mktemp("hymenoptera")
    with zipfile.ZipFile(test_data / "hymenoptera_data.zip") as archive:
        archive.extractall(folder)
    return folder / "hymenoptera_data"


@pytest.fixture(scope="session")
def other_domain(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images of the same classes, darker and noisier: 10 of each to train on, 5 to test on."""
    folder = tmp_path_factory.mktemp("target")
    rng = np.random.default_rng(5)
    for split, count in (("train", 10), ("test", 5)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                image[..., label] += 60
                cv2.imwrite(str(folder / split / name / f"{i}.png"), image)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Embedded sets are prepared once per test run, away from the user's cache; no programs are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JXFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JXFER_COMPILED", "off")
        yield


@pytest.fixture
def no_zoos(monkeypatch, tmp_path):
    """No zoo but those that a test names."""
    monkeypatch.delenv("JXFER_ZOO", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("jxfer.zoo.zoos._shipped_zoo", lambda: tmp_path / "nothing")


@pytest.fixture(scope="session")
def one_line():
    """`with one_line("a", "b"):` expects a UserError of one line that holds every word."""

    @contextlib.contextmanager
    def expect(*words):
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message

    return expect


@pytest.fixture
def hub_server(monkeypatch, tmp_path):
    """A loopback server that is the Hub, with an empty cache."""
    import huggingface_hub.constants

    from tests.zoo.server import Server

    server = Server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield server
    server.close()


@pytest.fixture(scope="session")
def bucket_server():
    """One server for all tests."""
    reason = "a gs:// bucket on loopback needs google-cloud-storage and gcp-storage-emulator"
    pytest.importorskip("google.cloud.storage", reason=reason)
    pytest.importorskip("gcp_storage_emulator", reason=reason)
    from tests.bucket import Bucket

    server = Bucket()
    yield server
    server.close()


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """An empty bucket, gs://some-bucket, that gives up on failures after a second."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_server.host)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("jxfer.data.remote._RETRY_SECONDS", 1.0)
    bucket_server.wipe()
    yield bucket_server
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # the client leaves the sockets of failed requests behind


CLASSES = ("ants", "bees", "cats")


def write_images(folder: pathlib.Path, per_class: int, seed: int) -> None:
    """Noise of 32 px around a colour of the class's own, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            image = rng.integers(0, 200, (32, 32, 3))
            image[..., label] += 55
            cv2.imwrite(str(folder / name / f"{i:02}.png"), image.astype(np.uint8))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """36 training, 15 validation and 12 test images of 3 classes."""
    root = tmp_path_factory.mktemp("images")
    for seed, (split, per_class) in enumerate((("train", 12), ("val", 5), ("test", 4))):
        write_images(root / split, per_class, seed)
    return root


@pytest.fixture
def declare(tmp_path: pathlib.Path, images: pathlib.Path):
    """Writes an experiment file; `changes` is the source of what differs in its fields."""

    def write(changes: str = "") -> pathlib.Path:
        file = tmp_path / "table.py"
        text = small_experiment.FILE.replace("IMAGES", str(images))
        file.write_text(text.replace("CHANGES", changes))
        return file

    return write
