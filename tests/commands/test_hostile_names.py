"""Class names with newlines, HTML and terminal escapes, from a folder to what is printed."""

import json

import cv2
import numpy as np
import pytest

from jxfer.commands.main import main
from jxfer.data.readers import FolderSource
from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card

NAMES = ("<script>alert(1)", "a\nb", "\x1b[2J\x1b]0;owned\x07")
SHOWN = ("<script>alert(1)", "a\\nb", "\\x1b[2J\\x1b]0;owned\\x07")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """(data folder, entry with its classes)."""
    root = tmp_path_factory.mktemp("hostile")
    for i, name in enumerate(NAMES):
        # No folder's name has a slash: the end tag is left out.
        (root / "data" / name).mkdir(parents=True)
        for j in range(4):
            image = np.full((8, 8, 3), 60 * i + j, np.uint8)
            cv2.imwrite(str(root / "data" / name / f"{j}.png"), image)
    model = registry.create("resnet20", 3, through="stage1")
    names = FolderSource(root / "data").class_names
    card = Card("x\x1b[31m\ny", "resnet20", names, CIFAR, through="stage1", notes="a\x9bb\u202e")
    store.save(root / "entry", card, model.init(0))
    return root / "data", root / "entry"


def test_the_names_are_kept(hostile):
    data, entry = hostile
    assert set(FolderSource(data).class_names) == set(NAMES)
    assert set(store.read_card(entry).class_names) == set(NAMES)


def test_a_card_is_shown_without_escapes(hostile, capsys):
    entry = str(hostile[1])
    assert main(["zoo", "show", entry]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert any(all(name in line for name in SHOWN) for line in lines)
    assert main(["zoo", "show", entry, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert set(json.loads(out)["class_names"]) == set(NAMES)


def test_an_error_is_one_line_whatever_it_names(hostile, tmp_path, capsys):
    data, entry = hostile
    for args in (
        ["evaluate", str(entry), "--data.source", f"folder:{data}/none\n\x1b[2J"],
        ["predict", str(entry), f"{tmp_path}/\x1b[31mx\n.png"],
        ["zoo", "show", "no\nsuch\x07"],
    ):
        assert main(args) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.isprintable()


@pytest.mark.slow
def test_predictions_and_figures_are_shown_without_escapes(hostile, capsys):
    data, entry = hostile
    assert main(["predict", str(entry), str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 12
    assert all(line.isprintable() for line in lines)
    assert main(["evaluate", str(entry), "--data.source", f"folder:{data}"]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
