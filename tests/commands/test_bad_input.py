"""What bad input gets from the command line: one line that names it, and exit code 2."""

import json
import shutil

import cv2
import numpy as np
import pytest
import safetensors.numpy

from jxfer.commands.main import main
from tests import torch_reference


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "layer2.0.conv1.weight"),
        ("extra", "unexpected"),
        ("shape", "shape"),
        ("classes", "3 names"),
    ],
)
def test_weights_that_do_not_fit(damage, words, tmp_path, fails):
    reference = torch_reference.create("resnet20", 4 if damage == "classes" else 3)
    tensors = {k: np.ascontiguousarray(v.numpy()) for k, v in reference.state_dict().items()}
    if damage == "missing":
        del tensors["layer2.0.conv1.weight"]
    elif damage == "extra":
        tensors["layer9.0.conv1.weight"] = np.zeros((1,), np.float32)
    elif damage == "shape":
        tensors["conv1.weight"] = np.zeros((16, 3, 5, 5), np.float32)
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(tensors, path)
    line = fails([
        "zoo", "import", str(path), "--arch", "resnet20", "--class-names", "a,b,c",
        "--zoo", str(tmp_path / "zoo"),
    ])  # fmt: skip
    assert words in line
    assert not (tmp_path / "zoo" / "net").exists()


def test_data_folders_that_cannot_be_used(tmp_path, fails):
    one, empty, none = tmp_path / "one", tmp_path / "empty", tmp_path / "none"
    pixels = np.zeros((8, 8, 3), np.uint8)
    for folder in (one / "cat", empty / "cat", empty / "dog", none / "cat", none / "dog"):
        folder.mkdir(parents=True)
    cv2.imwrite(str(one / "cat" / "0.png"), pixels)
    cv2.imwrite(str(empty / "cat" / "0.png"), pixels)
    for folder, words in (
        (one, "at least two class folders"),
        (empty, "dog holds no image"),
        (none, "holds no image"),
        (tmp_path / "absent", "does not exist"),
    ):
        line = fails([
            "train", "--run", str(tmp_path / "r"), "--data.source", f"folder:{folder}",
            "--model.arch", "resnet20", "--strategy.name", "scratch",
        ])  # fmt: skip
        assert words in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.arch", "resnet21", "--strategy.name", "scratch"), "did you mean"),
        (("--model.weights", "resnet20-cifar10O"), "did you mean"),
        (("--model.arch", "resnet20"), "--strategy.name scratch"),
        (
            ("--model.arch", "resnet20", "--model.through", "stage7", "--strategy.name", "scratch"),
            "stage1, stage2, stage3",
        ),
        (("--model.arch", "resnet20", "--batch-size", "12"), "16"),
        (("--model.arch", "resnet20", "--epochs", "0"), "--epochs"),
        ((), "--model.weights"),
    ],
)
def test_options_that_contradict(options, words, images, tmp_path, fails):
    base = ("train", "--run", str(tmp_path / "r"), "--data.source", f"folder:{images}")
    size = () if "--batch-size" in options else ("--batch-size", "8")
    assert words in fails([*base, *size, *options])


def test_a_typo_in_an_option_exits_with_2_and_suggests(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--run", "r", "--data.source", "digits", "--optimizer.lrr", "1"])
    assert "--optimizer.lr" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unreadable_image_is_named(images, tmp_path, capsys, fails):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "train" / "bees" / "00.png").write_bytes(b"not an image")
    model = ("--model.arch", "resnet20", "--model.through", "stage1", "--strategy.name", "scratch")
    args = ("train", "--data.source", f"folder:{folder}", *model, "--epochs", "2")
    args = (*args, "--batch-size", "8")
    line = fails([*args, "--run", str(tmp_path / "stops"), "--json"])
    assert "bees/00.png" in line
    skip = (*args, "--run", str(tmp_path / "goes-on"), "--data.on-bad-image", "skip", "--json")
    assert main(list(skip)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["skipped_images"] == ["train/bees/00.png"]
    assert summary["train_examples"] == 35
    evaluation = ("evaluate", str(tmp_path / "goes-on"), "--split", "train")
    assert main([*evaluation, "--json"]) == 0  # as the run did
    assert json.loads(capsys.readouterr().out)["examples"] == 35
    assert "bees/00.png" in fails([*evaluation, "--data.on-bad-image", "error"])


def test_a_headless_entry_does_not_evaluate(backbone, images, fails):
    line = fails(["evaluate", str(backbone), "--data.source", f"folder:{images}"])
    assert line == "jxfer: error: backbone has no head, only a backbone; train one on it first"
