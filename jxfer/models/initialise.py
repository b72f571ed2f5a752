"""Random starting values, drawn leaf by leaf on the host.

Before `layers` in the flow. Linen's own `init` compiles one program of all draws, which takes XLA
tens of seconds on CPU. Here each leaf has a generator of its own, seeded by (seed, path): nothing
compiles, the bits are the same on every backend, and a leaf does not depend on which others exist,
so a new head or a truncated backbone draws what the whole network would.
"""

import math
import re
import zlib
from typing import Any

import flax.linen as nn
import numpy as np

# What the Linen modules declare: they give the shapes, `draw` the values.
declared = nn.initializers.zeros_init()


def draw(path: str, shape: Any, seed: int) -> np.ndarray:
    """The starting value of one leaf, float32.

    Convolutions: normal with variance 2 / (kh * kw * C_out), He et al. 2015, "Delving Deep into
    Rectifiers", eq. 14, as torchvision's ResNets (which do not count groups either). Fully
    connected layers before a ReLU (`fc6`, `head/hidden1`), stored as convolutions or not: variance
    2 / fan_in, eq. 10. The last layer: variance 1 / C_in. All are normal. Scales and variances are
    one; biases and means are zero.

    Args:
      path: such as `params/stage1/block0/conv1/kernel`.
      shape: of the leaf.
      seed: of the run.
    """
    name = path.rpartition("/")[2]
    if name in ("scale", "var"):
        return np.ones(shape, np.float32)
    if name in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    if name != "kernel" or len(shape) not in (2, 4):
        raise ValueError(f"no rule draws {path} of shape {shape}")
    if re.search(r"/(fc|hidden)\d+/kernel$", path):
        variance = 2 / math.prod(shape[:-1])
    else:
        variance = 2 / (shape[0] * shape[1] * shape[3]) if len(shape) == 4 else 1 / shape[0]
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(variance))
