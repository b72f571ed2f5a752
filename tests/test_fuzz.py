"""Parsers of what others wrote: whatever they are given, a result or one line of `UserError`.

Valid inputs with parts exchanged get further into a parser than noise does. `scripts/fuzz.py` goes
on where this ends.
"""

import io
import json

import cv2
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from jxfer.data.sources import DataConfig
from jxfer.data.transforms import CIFAR
from jxfer.train import config as configs
from jxfer.train.config import TrainConfig
from jxfer.zoo.card import Ancestor, Card, Measurement
from tests import fuzz_targets
from tests.fuzz_targets import try_one
from tests.hypotheses import examples
from tests.zoo.server import CONFIG

CARD = Card(
    "small",
    "resnet20",
    ("cat", "dog"),
    CIFAR,
    parents=(Ancestor("a", "resnet20", "d", "l", None, "", None, ""),),
    measured=(Measurement("d", "test", 0.5, 1, 2),),
    config={"a": {"b": 1}},
)
RUN = configs.to_dict(TrainConfig(DataConfig("digits")))


TEXT = st.sampled_from("a1/.:~-é\n\x1b\0\udcff")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [10**400, -1, 0, 1e308, float("nan"), float("inf"), "../..", "\x1b[2J\n", "\udcff"]
    ),
    st.floats(),
    st.text(TEXT, max_size=5),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(TEXT, max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw, valid):
    """A JSON value of which one part is another, missing, or new."""
    value = json.loads(json.dumps(valid))
    node = value
    while isinstance(node, dict | list) and node:
        key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.just(0))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            break
        node = node[key]
    match draw(st.integers(0, 3)):
        case 0 if isinstance(node, dict):
            del node[key]
        case 1 if isinstance(node, dict):
            node[draw(st.text(TEXT, max_size=4))] = draw(values)
        case _:
            node[key] = draw(values)
    return json.dumps(value).encode("utf-8", "surrogateescape")


@st.composite
def damaged(draw, valid):
    """Bytes of which some are exchanged, and perhaps the end is missing or new."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(data) - 1, 200)))
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.parametrize(
    ("target", "valid"),
    [("card", json.loads(CARD.to_json())), ("config", RUN), ("hub_config", CONFIG)],
    ids=["card", "config", "hub_config"],
)
@examples(40)
@given(st.data())
def test_json_with_a_part_exchanged(target, valid, data):
    try_one(target, data.draw(changed(valid)))


lines = {
    "label_rules": st.tuples(
        st.text(st.sampled_from("ab.*+?()[]{}|\\^$/9,stem=-"), max_size=12),
        st.sampled_from(["", "=head", "=frozen", "=low_lr/stage1", "=low_lr/", "=x"]),
    ).map("".join),
    "data_spec": st.one_of(
        st.text(TEXT, max_size=8),
        st.sampled_from(
            ["tfds:", "tfds:a/b:1.0.0", "tfds:../..:9", "folder:~nobody/x", "folder:" + "a" * 5000]
        ),
        st.text(st.sampled_from("tfds:./12"), max_size=8).map("tfds:".__add__),
        st.text(st.sampled_from("ab:~\0*é"), max_size=8).map("folder:".__add__),
    ),
    "name_table": st.one_of(
        st.sampled_from(
            ["conv1.weight", "bn1.weight", "linear.weight", "fc.weight", "layer1.0.conv1.bias"]
        ),
        st.text(st.sampled_from("layer1.02convbn weight_"), max_size=20),
    ),
}


@pytest.mark.parametrize("target", ["label_rules", "name_table"])
@examples(40)
@given(st.data())
def test_lines(target, data):
    try_one(target, "\n".join(data.draw(st.lists(lines[target], max_size=5))).encode())


@examples(40)
@given(lines["data_spec"])
def test_data_specs(spec):
    try_one("data_spec", spec.encode("utf-8", "surrogateescape"))


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.float32).reshape(2, 3))
    return file.getvalue()


FILES = {
    "npy": npy(),
    "safetensors": safetensors.numpy.save({"a": np.ones((2, 3), np.float32)}, {"format": "pt"}),
    "image": cv2.imencode(".png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))[1].tobytes(),
}


@pytest.mark.parametrize("target", FILES)
@examples(40)
@given(st.data())
def test_files_with_bytes_exchanged(target, data):
    try_one(target, data.draw(st.one_of(damaged(FILES[target]), st.binary(max_size=40))))


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_nothing_and_deep_nesting(target):
    for data in (b"", b"\0", b"\xff" * 9, b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500):
        try_one(target, data)


@pytest.mark.parametrize(
    ("target", "data"),
    [
        ("label_rules", b"a{99999999999999}=head"),
        ("label_rules", b"(" * 500 + b")" * 500 + b"=head"),
        ("data_spec", b"folder:~nobody-of-this-name/x"),
        ("data_spec", b"folder:" + b"a" * 5000),
        ("data_spec", b"[" * 5000),
        ("data_spec", b"folder:~\0"),
        ("data_spec", b"tfds:1"),
        ("data_spec", b"tfds:_a"),
        ("data_spec", b"tfds:" + b"a" * 5000),
        ("data_spec", "tfds:٣".encode()),
        ("data_spec", b"tfds:a/.."),
        ("name_table", b"linear.weight"),
        ("card", CARD.to_json().replace('"size": 32', f'"size": {10**400}').encode()),
        ("card", CARD.to_json().replace('"b": 1', '"b": ' + "[" * 400 + "]" * 400).encode()),
        ("hub_config", json.dumps(CONFIG).replace('"mit"', "[1, null]").encode()),
    ],
)
def test_what_was_found(target, data):
    """Each ended in a traceback."""
    try_one(target, data)
