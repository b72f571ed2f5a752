"""What decides the bits of features besides weights and pixels: device, settings, code.

Before `prefix` in the flow. The same function on other devices, cut into other batches, or compiled
by other versions rounds otherwise, so what is kept on disk carries this beside its rows.
"""

import hashlib
import os
import pathlib
import subprocess
from importlib.metadata import version
from typing import Any

import jax

from jxfer import machine

_PACKAGE = pathlib.Path(__file__).parents[1]
_CALLED = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "pillow")


def _code() -> dict[str, str]:
    """What makes pixels and features: our source files, and the versions of what they call."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE)}\n".encode())
        digest.update(file.read_bytes())
    return {"jxfer": digest.hexdigest(), **{name: version(name) for name in _CALLED}}


CODE = _code()  # now: a checkout may change the files while the process goes on


def identity(batch_size: int) -> dict[str, Any]:
    """JSON values.

    Args:
      batch_size: examples per step over all devices.
    """
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "runtime": device.client.platform_version,
        "devices": jax.device_count(),
        "cores": machine.visible_cores(),  # XLA divides a CPU program among them
        "batch_size": batch_size,
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        **{name: os.environ.get(name) for name in ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")},
        "code": CODE,
    }


def commit() -> str | None:
    """The git commit of this package, with `+changes` where its files differ from it.

    None where the package is no part of a git repository, be it installed in the folder of one.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
