"""Shared by all tests: eight fake devices, strict JAX settings, the folder of real data."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

_ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real weights and images; the test is skipped, saying so, without it."""
    folder = pathlib.Path(os.environ.get("JXFER_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set JXFER_TEST_DATA to the folder that holds it")
    return folder
