"""What a card keeps of the features of the images that its weights were trained on.

Before `card`, of which it is a field. Moments and a few rows are enough to say how far other images
lie from them (`advise.similarity`), without the images themselves. Arrays stand in the JSON as one
line each: base64 of little-endian float32, row after row.
"""

import base64
import binascii
import dataclasses

import numpy as np

from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError

_DTYPE = np.dtype("<f4")


@dataclasses.dataclass(frozen=True)
class SourceStatistics:
    """Features of the source: their mean, covariance, and a random sample of them.

    About 16/3 bytes of JSON for each number in the covariance: 22 kB for 64 features, 1.4 MB for
    512, 22 MB for 2048.

    Raises:
      UserError: an array is not what its shape says, or a number in it is not finite.
    """

    output: str
    """which output of the network: "pooled\""""
    data: str
    """data spec of the images, such as "glyphs" or a folder's name"""
    split: str
    """of the data: "train" is what training sees"""
    split_seed: int
    """that drew a held-out validation split, where the data has none"""
    val_fraction: float
    """of each class that was held out then"""
    examples: int
    """images that the moments are of"""
    preprocessing: Preprocessing
    """that the images went through, the card's own"""
    tensors_sha256: str
    """digest of the tensors that made the features, the card's own"""
    features: int
    """D, the features of an image"""
    mean: str
    """[D]"""
    covariance: str
    """[D, D], divided by examples - 1"""
    sample: str
    """[S, D]: the features of some of the images, drawn without replacement"""

    def __post_init__(self) -> None:
        arrays = {name: self._decoded(name) for name in ARRAYS}
        found, size = {name: len(array) for name, array in arrays.items()}, self.features
        if (
            size < 1
            or (found["mean"], found["covariance"]) != (size, size**2)
            or found["sample"] / size not in range(1, self.examples + 1)
        ):
            numbers = ", ".join(f"{count} in {name}" for name, count in found.items())
            raise UserError(
                f"statistics: {numbers} are not the numbers for {size} features of "
                f"{self.examples} examples"
            )
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"statistics.{name} holds a number that is not finite")

    def mean_array(self) -> np.ndarray:
        """float32 [D]."""
        return self._decoded("mean")

    def covariance_array(self) -> np.ndarray:
        """float32 [D, D]."""
        return self._decoded("covariance").reshape(self.features, self.features)

    def sample_array(self) -> np.ndarray:
        """float32 [S, D]."""
        return self._decoded("sample").reshape(-1, self.features)

    def __str__(self) -> str:
        return (
            f"{self.output}, {self.features} features, of {self.examples:,} examples "
            f"({self.data}, {self.split}), and {len(self.sample_array())} of them"
        )

    def _decoded(self, name: str) -> np.ndarray:
        try:
            values = np.frombuffer(base64.b64decode(getattr(self, name), validate=True), _DTYPE)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"statistics.{name} is not base64 of float32: {error}") from None
        return values.astype(np.float32)


ARRAYS = ("mean", "covariance", "sample")
"""The fields that hold arrays."""


def encode(array: np.ndarray) -> str:
    """An array as such a field holds it."""
    return base64.b64encode(np.ascontiguousarray(array, _DTYPE).tobytes()).decode("ascii")
