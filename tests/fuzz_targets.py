"""The parsers of what others wrote, each as a function of bytes: a result or a `UserError`.

`tests/test_fuzz.py` feeds them by Hypothesis, `scripts/fuzz.py` by atheris.
"""

import contextlib
import functools
import pathlib
import tempfile
import warnings
from collections.abc import Callable

import numpy as np

from jxfer import trees
from jxfer.data import sources, transforms
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.json_fields import decode, parse
from jxfer.models import registry
from jxfer.train.config import TrainConfig
from jxfer.transfer.labels import label_tree
from jxfer.transfer.strategy import StrategyConfig, phases
from jxfer.zoo import hub, readers, torch_names
from jxfer.zoo.card import Card

PARAMS = trees.unflatten(
    dict.fromkeys(("stem/conv/kernel", "stage1/norm/scale", "head/linear/bias"), 0)
)


def card(data: bytes) -> None:
    Card.from_json(_text(data))


def config(data: bytes) -> None:
    decode(TrainConfig, _json(data), "config.json")


def hub_config(data: bytes) -> None:
    hub._read_config(_json(data), "config.json")


def label_rules(data: bytes) -> None:
    """A line each, PATTERN=LABEL."""
    lines = tuple(_text(data).splitlines())
    (phase,) = phases(StrategyConfig("rules", rules=lines), ("stem", "stage1"))
    label_tree(PARAMS, phase.rules)


def data_spec(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources._stored_splits(DataConfig(_text(data), folder))


def name_table(data: bytes) -> None:
    """Names of tensors, a line each; how long a line is decides the tensor's shape."""
    lines = _text(data).splitlines()
    shapes = [(3, 16, 3, 3), (16,), (0,), (), (3, 64)]
    tensors = {line: np.zeros(shapes[len(line) % len(shapes)], np.float32) for line in lines}
    torch_names.class_count(tensors, _small().architecture)
    torch_names.import_torch(tensors, _small())


def npy(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "a.npy").write_bytes(data)
        readers.read_tensors(folder)


def safetensors(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "a.safetensors"
        file.write_bytes(data)
        readers.read_metadata(file)
        readers.read_tensors(file)


def image(data: bytes) -> None:
    transforms.decode(data, "x")


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(card, config, hub_config, label_rules, data_spec, name_table),
        *(npy, safetensors, image),
    )
}


def try_one(name: str, data: bytes) -> None:
    """Feeds one input; anything but a result or a `UserError` passes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, Pillow and re, about what they are given
        with contextlib.suppress(UserError):
            TARGETS[name](data)


@functools.cache
def _small() -> registry.Model:
    return registry.create("resnet20", 3, through="stage1")


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _json(data: bytes) -> object:
    """As the readers of files do it."""
    try:
        return parse(_text(data))
    except ValueError as error:
        raise UserError(str(error)) from None
