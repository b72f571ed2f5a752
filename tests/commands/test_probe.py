"""`jxfer probe` as a person meets it: every stage, the files, and what bad input gets."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from jxfer.commands.main import main
from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card


@pytest.fixture
def arguments(backbone, images):
    """Of the command, with more options; the last of an option counts."""

    def make(*more):
        source = ("--data.source", f"folder:{images}", "--batch-size", "16")
        return ["probe", str(backbone), *source, *more]

    return make


def test_a_probe_at_every_stage(arguments, tmp_path, capsys):
    out = tmp_path / "probes" / "one"
    assert main(arguments("--outputs", "stages", "pooled", "--out", str(out), "--json")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "probe.json").read_text())
    assert figures["examples"] == {"train": 36, "val": 15, "test": 12}
    assert figures["classes"] == ["ants", "bees", "cats"]
    assert list(figures["stages"])[-2:] == ["stage1", "pooled"]
    for stage in figures["stages"].values():
        path = stage["path"]
        assert {len(column) for column in path.values()} == {45}
        picked = path["val_correct"].index(max(path["val_correct"]))
        assert stage["strength"] == path["strengths"][picked]
        assert stage["val"]["correct"] == path["val_correct"][picked]
        assert stage["test"]["accuracy"] == stage["test"]["correct"] / 12
        low, high = stage["test"]["interval"]
        assert 0 <= low < stage["test"]["accuracy"] <= high <= 1
    # The colour of the classes is in any features.
    assert figures["stages"]["stage1"]["val"]["accuracy"] > 0.8
    assert figures["stages"]["stage1"] == figures["stages"]["pooled"]


@pytest.mark.parametrize("kind", ["knn", pytest.param("svm", marks=pytest.mark.slow)])
def test_other_probes_print_a_table_by_depth(arguments, capsys, kind):
    assert main(arguments("--probe.kind", kind, "--outputs", "stage1")) == 0
    title, header, row = capsys.readouterr().out.splitlines()
    assert title.endswith("36 train, 15 val, 12 test images")
    assert header.startswith("stage   features  " + ("k " if kind == "knn" else "strength "))
    assert row.startswith("stage1  16 ")
    assert "%" in row


def test_without_a_test_split_there_is_no_test_accuracy(arguments, images, tmp_path, capsys):
    for split in ("train", "val"):
        shutil.copytree(images / split, tmp_path / "data" / split)
    source = ("--data.source", f"folder:{tmp_path / 'data'}")
    assert main(arguments("--probe.kind", "knn", "--outputs", "stage1", *source, "--json")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["stages"]["stage1"]["test"] is None
    assert "test" not in figures["examples"]


def test_what_is_wrong_is_one_line(arguments, images, tmp_path, fails):
    line = fails(arguments("--outputs", "stage9"))
    assert "no output 'stage9'" in line

    one = tmp_path / "one"
    shutil.copytree(images / "train" / "ants", one / "ants")
    assert "holds only the class folder ants" in fails(arguments("--data.source", f"folder:{one}"))

    missing = tmp_path / "missing"
    shutil.copytree(images, missing)
    shutil.rmtree(missing / "train" / "bees")
    (missing / "train" / "bees").mkdir()
    line = fails(arguments("--data.source", f"folder:{missing}"))
    assert "bees" in line

    three = tmp_path / "three"
    for name in ("ants", "bees", "cats"):
        (three / name).mkdir(parents=True)
        shutil.copy(images / "train" / name / "00.png", three / name)
    line = fails(arguments("--data.source", f"folder:{three}"))
    assert "validation" in line


def test_a_folder_that_takes_no_file_is_known_before_the_work(
    arguments, tmp_path, fails, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("jxfer.commands.probe.weights.load", pytest.fail)
        (tmp_path / "file").write_text("")
        assert "name a folder" in fails(arguments("--out", str(tmp_path / "file")))
        assert "File name too long" in fails(arguments("--out", "x" * 300))

        def refuse(dir):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr("jxfer.train.run_folder.tempfile.TemporaryFile", refuse)
        line = fails(arguments("--out", str(tmp_path / "out")))
        assert "--out" in line
        assert "Read-only file system" in line

    (tmp_path / "out" / "probe.json").mkdir(parents=True)
    knn = ("--probe.kind", "knn", "--outputs", "stage1")
    assert "Is a directory" in fails(arguments(*knn, "--out", str(tmp_path / "out")))


def test_options_that_do_nothing_are_refused(arguments, fails):
    line = fails(arguments("--probe.metric", "euclidean"))
    assert line.endswith("--probe.metric does nothing under --probe.kind softmax")
    for option in (("--zoo", "X"), ("--batch-size", "-3")):
        assert "leave them out" in fails(["probe", "--features", "a", "b", *option])
    assert "--batch-size -3" in fails(arguments("--batch-size", "-3"))


def test_weights_that_are_not_finite_are_one_line(images, tmp_path, fails):
    model = registry.create("resnet20", None, through="stage1")
    variables = model.init(0)
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    variables["params"]["stem"]["conv"]["kernel"] = np.full_like(kernel, np.nan)
    folder = tmp_path / "broken"
    store.save(folder, Card("broken", "resnet20", (), CIFAR, through="stage1"), variables)
    line = fails(["probe", str(folder), "--data.source", f"folder:{images}"])
    assert "not finite" in line


def test_features_that_were_written_give_the_same_probe(
    arguments, backbone, images, tmp_path, capsys
):
    folders = []
    for split in ("train", "val", "test"):
        folders.append(str(tmp_path / split))
        source = ("--data.source", f"folder:{images}", "--split", split, "--batch-size", "16")
        assert main(["features", str(backbone), "--out", folders[-1], *source]) == 0
    capsys.readouterr()
    knn = ("--probe.kind", "knn", "--json")
    assert main(arguments("--outputs", "pooled", *knn)) == 0
    direct = json.loads(capsys.readouterr().out)
    assert main(["probe", "--features", *folders, *knn]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == direct["stages"]
    assert main(["probe", "--features", *folders[:2], *knn]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["pooled"]["test"] is None


def test_features_that_do_not_belong_together_are_one_line(
    backbone, images, tmp_path, fails, capsys
):
    other = tmp_path / "zoo" / "other"
    model = registry.create("resnet20", None, through="stage1")
    store.save(other, Card("other", "resnet20", (), CIFAR, through="stage1"), model.init(1))
    for name, weights, split, form in (
        ("train", backbone, "train", "pooled"),
        ("val", other, "val", "pooled"),
        ("maps", backbone, "val", "spatial"),
    ):
        source = ("--data.source", f"folder:{images}", "--split", split, "--form", form)
        more = ("--outputs", "stage1", "--batch-size", "16")
        assert main(["features", str(weights), "--out", str(tmp_path / name), *source, *more]) == 0
    train, val, maps = (str(tmp_path / name) for name in ("train", "val", "maps"))
    probe = ["probe", "--features"]
    assert f"{val} holds features of another network than {train}" in fails([*probe, train, val])
    assert "its weights differ" in fails([*probe, train, val])
    assert "form" in fails([*probe, train, maps])
    assert "holds maps" in fails([*probe, maps, train])
    assert "holds the same images" in fails([*probe, train, train])
    assert "two or three folders" in fails([*probe, train])
    assert "holds no features" in fails([*probe, train, str(images)])
    assert "leave them out" in fails(["probe", str(backbone), "--features", train, val])
    assert "give WEIGHTS and --data.source" in fails(["probe", str(backbone)])
    assert "give WEIGHTS and --data.source" in fails(["probe"])
