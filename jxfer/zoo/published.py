"""Weights that others publish: a file on this machine, and what is known of it before it is read.

After `readers`, before `hub` and `torchvision`, which fetch such files, and `weights`, which turns
them into variables.
"""

import dataclasses
from pathlib import Path

from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.zoo import readers
from jxfer.zoo.card import Card

CARD_KEY = "jxfer_card"
"""In the header of a safetensors file: the card, as JSON."""


@dataclasses.dataclass(frozen=True)
class Published:
    """Where the tensors are, and their card so far."""

    path: Path
    """a file or folder for `readers.read_tensors`"""
    card: Card
    """what the publisher says; `class_names` is empty where it names no classes"""
    num_classes: int | None = None
    """classes that the publisher says the head has; None: nothing is said"""
    layout_known: bool = False
    """the card came with the file, and describes its head and folded norms too"""


def local_file(path: Path, arch: str | None) -> Published:
    """A file that is here, with the card in its header if `jxfer zoo export` wrote it.

    Args:
      path: a weight file, or a folder of .npy files.
      arch: architecture; only needed where the file holds no card.

    Raises:
      UserError: an unknown kind of file; nothing says which architecture, or two things say
        different ones; the card in the header is invalid.
    """
    readers.check_kind(path)
    text = readers.read_metadata(path).get(CARD_KEY)
    if text is not None:
        card = Card.from_json(text, f"{path}, {CARD_KEY} in its header")
        if arch not in (None, card.arch):
            raise UserError(f"{path} is a {card.arch} by its own card, not a {arch}")
        return Published(path, card, layout_known=True)
    if arch is None:
        raise UserError(
            f"{path} is a plain weight file: which architecture? make an entry of it by "
            f"jxfer zoo import {path} --arch ARCH; a run without --model.reuse takes --model.arch"
        )
    row = registry.architecture(arch)
    name = path.name if path.is_dir() else path.stem
    card = Card(name, arch, (), row.preprocessing, source=path.name)
    return Published(path, card)
