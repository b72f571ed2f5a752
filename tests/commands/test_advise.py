"""`jxfer advise` as a person meets it, and the run that follows."""

import json
import shutil

import cv2
import pytest

from jxfer import sealed
from jxfer.commands.main import main


@pytest.fixture
def command(images, tmp_path):
    source = ("--data.source", f"folder:{images}", "--weights", "resnet20-cifar100")
    return ["advise", *source, "--out", str(tmp_path / "advice")]


@pytest.mark.slow
def test_it_advises_and_the_advice_can_be_run(images, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    for split in ("val", "test"):  # which the advisor must not read
        for file in (data / split).rglob("*.png"):
            file.write_bytes(b"no image")
    out = tmp_path / "advice"
    command = ["advise", "--data.source", f"folder:{data}", "--out", str(out), "--weights"]
    names = ["resnet20-cifar100", "resnet20-glyphs"]
    assert main([*command, *names, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "advice.json").read_text())
    assert [one["weights"] for one in figures["measurements"]] == names
    assert figures["weights"] in names
    assert cv2.imread(str(out / "advice.png")).std() > 1
    assert {path.name for path in out.iterdir()} == {"advice.json", "advice.png"}

    assert main([*command, *names]) == 0
    shown = capsys.readouterr().out
    for words in ("CS231n says", "freeze table says", "--from-advice", "36 training images"):
        assert words in shown

    run = tmp_path / "run"
    changed = ["--data.source", f"folder:{images}", "--epochs", "1", "--json"]
    advised = ["train", "--run", str(run), "--from-advice", str(out / "advice.json")]
    assert main([*advised, *changed]) == 0
    summary = json.loads(capsys.readouterr().out)
    config = sealed.bare(json.loads((run / "config.json").read_text()))
    assert summary["strategy"] == figures["config"]["strategy"]["name"]
    expected = figures["config"] | {"epochs": 1.0}
    expected["data"] = expected["data"] | {"source": f"folder:{images}"}
    assert config == expected


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--weights", "resnet20-cifar100", "resnet20-cifar100"], "comes twice"),
        (["--weights", "resnet20-cifar1000"], "resnet20-cifar1000"),
        (["--image-size", "0"], "--model.image-size 0"),
    ],
)
def test_what_is_wrong_is_one_line(command, fails, tmp_path, more, word):
    assert word in fails([*command, *more])
    assert not (tmp_path / "advice").exists()


def test_one_class_three_images_and_a_class_that_train_lacks_are_one_line(images, tmp_path, fails):
    weights = ("--weights", "resnet20-cifar100", "--out", str(tmp_path / "out"))

    def error_of(data):
        error = fails(["advise", "--data.source", f"folder:{data}", *weights])
        assert error.startswith("jxfer: error: ")
        return error

    one = tmp_path / "one"
    shutil.copytree(images / "train" / "ants", one / "train" / "ants")
    assert "only the class folder ants" in error_of(one)

    three = tmp_path / "three"
    for name in ("ants", "bees", "cats"):
        folder = three / "train" / name
        folder.mkdir(parents=True)
        shutil.copy(images / "train" / name / "00.png", folder)
    assert "no class has two images" in error_of(three)

    lacks = tmp_path / "lacks"
    shutil.copytree(images, lacks)
    shutil.rmtree(lacks / "train" / "cats")
    assert "cats" in error_of(lacks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "not valid JSON"),
        ("{}", "no advice.json"),
        ('{"config": {}}', "missing"),
    ],
)
def test_advice_that_is_none_is_one_line(tmp_path, fails, content, words):
    file = tmp_path / "advice.json"
    if content is not None:
        file.write_text(content)
    assert words in fails(["train", "--run", str(tmp_path / "run"), "--from-advice", str(file)])
    assert not (tmp_path / "run").exists()
