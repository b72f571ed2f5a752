"""Images that need no file."""

import io

import numpy as np
from PIL import Image

from jxfer.data.sources import Example, Source


class Noise(Source):
    """`n` images of noise in 7 classes, in memory."""

    def __init__(self, n):
        rng = np.random.default_rng(n)
        self.class_names = tuple("abcdefg")
        self._labels = rng.integers(0, 7, n).astype(np.int32)
        self.pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)

    @property
    def labels(self):
        return self._labels

    def name(self, index):
        return str(index)

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, "png")
        return Example(file.getvalue(), int(self._labels[index]), str(index))
