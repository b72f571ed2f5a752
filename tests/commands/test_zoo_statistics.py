"""`jxfer zoo statistics`, in process, and what the other commands of the zoo make of its work."""

import json
import os

import numpy as np
import pytest

from jxfer.commands.zoo import main
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card
from tests.conftest import CLASSES
from tests.runs import largest_file


@pytest.fixture(scope="module")
def variables():
    return registry.create("resnet20", len(CLASSES), through="stage1").init(0)


@pytest.fixture
def entry(zoo, variables):
    architecture = registry.architecture("resnet20")
    card = Card("net", "resnet20", CLASSES, architecture.preprocessing, through="stage1")
    store.save(zoo / "net", card, variables)
    return zoo / "net"


@pytest.fixture
def run(entry, images):
    def run(*more, name=str(entry), source=f"folder:{images}"):
        return main(["statistics", name, "--data.source", source, *more])

    return run


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_card_gets_them_and_nothing_else_moves(entry, images, run, capsys):
    before, card = content(entry), store.verify(entry)
    assert run() == 0
    assert "pooled, 16 features, of 36 examples" in capsys.readouterr().out
    after = content(entry)
    assert {path for path in after if after[path] != before.get(path)} == {entry / "card.json"}
    assert after.keys() == before.keys()
    found = store.verify(entry)
    assert (found.statistics.data, found.statistics.split) == (f"folder:{images}", "train")
    assert found.statistics.sample_array().shape == (36, 16)
    assert card.statistics is None
    assert {**found.listed(), "statistics": None} == card.listed()


def test_the_same_command_gives_the_same_card_and_another_split_another(entry, run):
    run()
    first = content(entry)
    run()
    assert content(entry) == first
    run("--split", "test")
    assert store.read_card(entry).statistics.examples == 12


def test_no_command_prints_the_arrays(entry, zoo, run, capsys):
    run("--json")
    written = json.loads(capsys.readouterr().out)["statistics"]
    main(["show", "net", "--zoo", str(zoo), "--json"])
    assert json.loads(capsys.readouterr().out)["statistics"] == written
    main(["list", "--zoo", str(zoo), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["statistics"] == written
    assert written["examples"] == 36
    assert max(len(str(value)) for value in written.values()) < 300
    main(["show", "net", "--zoo", str(zoo)])
    shown = capsys.readouterr().out
    assert "statistics      pooled, 16 features, of 36 examples" in shown
    assert max(map(len, shown.splitlines())) < 300
    main(["diff", str(entry), str(entry)])
    assert len(capsys.readouterr().out) < 3000


@pytest.mark.parametrize(
    ("options", "kept"),
    [((), True), (("--headless",), False), (("--preprocessing.size", "64"), False)],
)
def test_they_travel_with_the_same_tensors_and_pixels_alone(
    entry, zoo, tmp_path, run, options, kept
):
    run()
    file = tmp_path / "net.safetensors"
    main(["export", str(entry), "--format", "torch", "--out", str(file)])
    main(["import", str(file), "--name", "back", "--zoo", str(zoo), *options])
    back = store.verify(zoo / "back").statistics
    assert back == (store.read_card(entry).statistics if kept else None)


def test_images_of_other_classes_are_warned_of(entry, run, tmp_path, images, caplog):
    other = tmp_path / "other"
    for name in ("ants", "bees"):
        (other / name).mkdir(parents=True)
        for file in (images / "train" / name).iterdir():
            (other / name / file.name).write_bytes(file.read_bytes())
    run(source=f"folder:{other}")
    assert "is it what the weights were trained on?" in caplog.text
    assert store.read_card(entry).statistics.examples == 22  # 1 of 12 is held out of each


def test_bad_input_is_one_line_and_changes_nothing(one_line, entry, zoo, run, monkeypatch):
    before = content(entry)
    with one_line("holds neither card.json"):
        run(name=str(zoo))
    with one_line("has no split dev"):
        run("--split", "dev")
    with one_line("does not exist"):
        run(source="folder:nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with one_line("read-only", "zoo of your own"):
            run()
    largest = largest_file(entry / "tensors")
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1])
    with one_line("damaged"):
        run()
    largest.write_bytes(whole)
    assert content(entry) == before


def test_an_entry_that_changed_meanwhile_keeps_its_card(one_line, entry, variables):
    card, _ = store.load(entry)
    moved = {**variables, "params": {**variables["params"]}}
    moved["params"]["head"] = {
        "linear": {k: v + np.float32(1) for k, v in variables["params"]["head"]["linear"].items()}
    }
    store.save(entry, card, moved, overwrite=True)
    with one_line("holds other tensors by now"):
        store.write_card(entry, card)
    store.verify(entry)
