"""One example's pixels, decoded at the resolution that is needed of it.

After `transforms`, before `augmentation`.
"""

import numpy as np

from jxfer.data import transforms
from jxfer.data.readers import Example

_REDUCTIONS = (8, 4, 2, 1)
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Picture:
    """An example whose file is read once, and decoded once at each resolution that is asked for.

    Raises:
      UserError: the file is no JPEG and cannot be decoded.
    """

    def __init__(self, example: Example) -> None:
        self.label = example.label
        self._name, self._file = example.name, example.image
        self._decoded: dict[int, np.ndarray] = {}
        size = jpeg_size(self._file)
        self._is_jpeg = size is not None
        if size is None:
            height, width = self.pixels().shape[:2]
            size = height, width
        self.shape: tuple[int, int] = size
        """height, width"""

    @property
    def nbytes(self) -> int:
        """What it takes at most: the file, and the pixels of every resolution."""
        height, width = self.shape
        reductions = _REDUCTIONS if self._is_jpeg else (1,)
        pixels = sum(-(-height // r) * -(-width // r) for r in reductions)
        return len(self._file) + 3 * pixels

    def reduction(self, height: int, width: int, size: int) -> int:
        """The largest factor by which the decoder can shrink an area that shall fill a square.

        Args:
          height: of the area, in pixels of the file.
          size: side of the square; the reduced area has no side that is shorter.
        """
        if not self._is_jpeg:
            return 1
        return next((r for r in _REDUCTIONS if min(height, width) >= r * size), 1)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """uint8 `[ceil(H / reduction), ceil(W / reduction), 3]`, RGB; not to be written to.

        Raises:
          UserError: the file cannot be decoded.
        """
        found = self._decoded.get(reduction)
        if found is None:  # two threads may both decode it, to the same pixels
            found = transforms.decode(self._file, self._name, reduction)
            self._decoded[reduction] = found
        return found


def jpeg_size(file: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a JPEG file; None if it is another file, or damaged.

    As stored: EXIF rotation is ignored, as by `transforms.decode`.
    """
    if not file.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker in _START_OF_FRAME:
            height, width = (int.from_bytes(file[at + i : at + i + 2], "big") for i in (5, 7))
            return (height, width) if height and width else None
        else:
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return None
