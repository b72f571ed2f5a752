"""`jxfer predict --dense`, in process."""

import json

import cv2
import numpy as np
import pytest

from jxfer.commands.predict import main
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card
from tests.conftest import CLASSES


@pytest.fixture
def entry(tmp_path, no_zoos):
    """A CIFAR ResNet-20 of random weights whose head tells the classes apart."""
    model = registry.create("resnet20", len(CLASSES))
    card = Card("small", "resnet20", CLASSES, model.architecture.preprocessing)
    store.save(tmp_path / "zoo" / "small", card, model.init(seed=0))
    return str(tmp_path / "zoo" / "small")


def predicted(capsys, *args):
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_at_the_training_size_the_one_score_is_the_classifiers(entry, images, tmp_path, capsys):
    folder = images / "test" / "ants"
    whole = predicted(capsys, entry, folder)
    maps = predicted(capsys, entry, folder, "--dense", "--scale", "1", "--out", tmp_path / "out")
    assert len(maps) == len(whole) == 4
    for score, image in zip(maps, whole, strict=True):
        assert score["class"] == image["class"]
        assert np.shape(score["map"]) == (1, 1)
        assert score["map"][0][0] == pytest.approx(image["probability"], abs=1e-5)


def test_a_larger_image_gives_a_map_and_a_drawing_each(entry, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    args = (entry, tmp_path / "wide.png", "--dense", "--class-name", "bees")
    (record,) = predicted(capsys, *args, "--out", tmp_path / "out", "--scale", "3")
    assert record["size"] == [96, 123]
    # Stride 4: the last map is 24 x 31, and the mean's window is 8 x 8.
    scores = np.array(record["map"])
    assert scores.shape == (17, 24)
    assert record["class"] == "bees"
    assert record["mean_probability"] == pytest.approx(scores.mean())
    assert record["max_probability"] == scores.max()
    # The middle of the window of score 0 is that of the image at the training size.
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert record["max_at"] == pytest.approx([4 * row + 14, 4 * column + 14], abs=2)
    drawing = cv2.imread(record["drawing"])
    assert drawing is not None
    assert min(drawing.shape[:2]) > 200

    assert main([*map(str, args), "--out", str(tmp_path / "out")]) == 0
    assert "wide-scores.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--scale", "0.5"), ("--scale 0.5", "at least 1")),
        (("--scale", "nan"), ("--scale nan", "at least 1")),
        (("--class-name", "dogs"), ("dogs", "small")),
        (("--out", "{file}"), ("--out", "exists")),
        (("--top", "2"), ("--top does nothing with --dense",)),
    ],
)
def test_bad_options_are_one_line_and_draw_nothing(
    args, words, entry, images, tmp_path, one_line, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    args = [arg.format(file=tmp_path / "file") for arg in args]
    with one_line(*words):
        main([entry, str(images / "test" / "ants"), "--dense", *args])
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("idle", ["--scale=2", "--class-name=ants", "--out=maps"])
def test_options_of_maps_do_nothing_without_dense(idle, entry, images, one_line):
    with one_line(f"{idle.partition('=')[0]} does nothing without --dense"):
        main([entry, str(images / "test" / "ants"), *idle.split("=")])


def test_a_long_strip_has_no_map(entry, tmp_path, one_line):
    cv2.imwrite(str(tmp_path / "strip.png"), np.zeros((2, 200, 3), np.uint8))
    with one_line("strip.png", "64 times"):
        main([entry, str(tmp_path / "strip.png"), "--dense", "--out", str(tmp_path / "maps")])


def test_two_images_of_one_name_are_refused(entry, images, tmp_path, one_line):
    with one_line("two images", "00-scores.png"):
        main([entry, str(images / "test"), "--dense", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
