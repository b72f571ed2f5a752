"""`jxfer zoo import`, in process: files, and what others publish."""

import dataclasses
import json

import pytest
import safetensors.numpy

from jxfer.commands.zoo import main
from jxfer.zoo import store
from jxfer.zoo.card import Card, Measurement
from tests.zoo.server import COMMIT, CONFIG, NAME, publish

PETS = CONFIG | {"num_classes": 3, "label_names": ["cat", "dog", "owl"]}


def test_through_keeps_no_head(zoo, capsys, run_import):
    run_import("--through", "stage2")
    card = store.read_card(zoo / "net")
    assert (card.through, card.class_names) == ("stage2", ())
    assert "layer3.0.conv1.weight" in capsys.readouterr().out


def test_headless_keeps_all_stages(zoo, run_import):
    run_import("--headless")
    card = store.read_card(zoo / "net")
    assert (card.through, card.class_names) == (None, ())


def test_class_names_from_a_file(zoo, tmp_path, run_import):
    (tmp_path / "names.txt").write_text("cat\ndog, brown\n\nowl\n")
    run_import("--class-names", str(tmp_path / "names.txt"))
    assert store.read_card(zoo / "net").class_names == ("cat", "dog, brown", "owl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--class-names", "a,b"], ("2 names", "has 3")),
        (["--class-names", "a,b,a"], ("'a' twice",)),
        ([], ("head of 3 classes", "--class-names", "--headless")),
        (["--through", "stage1", "--class-names", "a,b,c"], ("keep no head",)),
        (["--through", "stage9"], ("stage9",)),
        (["--headless", "--arch", "resnet21"], ("unknown architecture 'resnet21'",)),
        (["--headless", "--arch", "resnet32"], ("resnet32:", "missing layer1.3")),
        (["--headless", "--name", "../up"], ("--name",)),
        (["--headless", "--reported-accuracy", "91.7"], ("reported_accuracy", "91.7")),
        (["--headless", "--preprocessing.size", "0"], ("size",)),
    ],
)
def test_import_refuses(one_line, zoo, options, words, run_import):
    with one_line(*words):
        run_import(*options)
    assert not zoo.exists()


def test_a_file_without_head(one_line, weights, tmp_path, run_import):
    tensors = safetensors.numpy.load_file(weights)
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("linear")}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    with one_line("bare.safetensors holds no head", "--headless"):
        run_import("--class-names", "a,b,c", file=tmp_path / "bare.safetensors")


def test_overwrite(one_line, zoo, run_import):
    run_import("--headless")
    with one_line("exists"):
        run_import("--headless", "--notes", "second")
    run_import("--headless", "--overwrite", "--notes", "second")
    assert store.read_card(zoo / "net").notes == "second"


def test_the_same_again_as_after_a_kill_at_the_very_end(zoo, run_import, capsys):
    run_import("--headless", "--json")
    first, before = capsys.readouterr().out, (zoo / "net" / "card.json").stat().st_mtime_ns
    run_import("--headless", "--json")
    again, then = json.loads(capsys.readouterr().out), (zoo / "net" / "card.json").stat()
    assert (again["card"], then.st_mtime_ns) == (json.loads(first)["card"], before)


def test_a_repository_of_the_hub_brings_all_that_it_says(hub_server, weights, zoo, capsys):
    file = publish(hub_server, weights.read_bytes(), PETS)
    assert main(["import", NAME, "--zoo", str(zoo)]) == 0
    assert "bn1.num_batches_tracked" in capsys.readouterr().out
    card = store.verify(zoo / "resnet20.made_up")
    assert (card.name, card.arch, card.licence) == ("resnet20.made_up", "resnet20", "mit")
    assert card.class_names == ("cat", "dog", "owl")
    assert (card.preprocessing.size, card.preprocessing.interpolation) == (40, "bicubic")
    assert card.source == f"https://huggingface.co/{NAME}/tree/{COMMIT}"
    assert card.source_sha256 == file.etag


def test_options_override_what_the_hub_says(hub_server, weights, zoo):
    publish(hub_server, weights.read_bytes(), PETS)
    assert main([
        "import", f"hf:{NAME}", "--zoo", str(zoo), "--name", "pets", "--class-names", "a,b,c",
        "--licence", "other", "--dataset", "Pets", "--preprocessing.size", "32",
    ]) == 0  # fmt: skip
    card = store.read_card(zoo / "pets")
    assert card.class_names == ("a", "b", "c")
    assert (card.licence, card.dataset) == ("other", "Pets")
    assert (card.preprocessing.size, card.preprocessing.crop) == (32, 40 / 42)


def test_a_head_of_the_hub_without_names_wants_them(hub_server, weights, zoo, one_line):
    publish(hub_server, weights.read_bytes(), PETS | {"label_names": None})
    with one_line(NAME, "head of 3 classes", "--class-names", "--headless"):
        main(["import", NAME, "--zoo", str(zoo)])
    assert not zoo.exists()
    assert main(["import", NAME, "--zoo", str(zoo), "--class-names", "a,b,c"]) == 0
    assert store.read_card(zoo / "resnet20.made_up").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"damaged": True}, ("is damaged",)), ({"truncated": True}, ("is damaged",))],
)
def test_a_failed_download_leaves_no_entry(fault, words, hub_server, weights, zoo, one_line):
    publish(hub_server, weights.read_bytes(), PETS, **fault)
    with one_line(NAME, *words):
        main(["import", NAME, "--zoo", str(zoo)])
    assert not zoo.exists()


@pytest.fixture
def exported(run_import, zoo, tmp_path):
    """An entry that was measured, and the file that `jxfer zoo export` makes of it."""
    run_import("--class-names", "a,b,c", "--reported-accuracy", "0.9")
    entry = zoo / "net"
    card, variables = store.load(entry)
    measured = Measurement("pets", "test", 0.5, 1, 2)
    card = dataclasses.replace(card, measured=(measured,))
    card = store.save(entry, card, variables, overwrite=True)
    path = tmp_path / "out.safetensors"
    assert main(["export", str(entry), "--format", "torch", "--out", str(path)]) == 0
    return card, path


def run_import_of(path, zoo, *more) -> Card:
    assert main(["import", str(path), "--zoo", str(zoo / "two"), "--name", "net", *more]) == 0
    return store.verify(zoo / "two" / "net")


def test_an_exported_file_comes_back_with_its_card(exported, zoo):
    card, path = exported
    back = run_import_of(path, zoo)
    assert dataclasses.replace(back, files_sha256=card.files_sha256) == card


@pytest.mark.parametrize("options", [("--headless",), ("--through", "stage2")])
def test_accuracies_stay_with_the_whole(options, exported, zoo):
    _, path = exported
    back = run_import_of(path, zoo, *options)
    assert (back.reported_accuracy, back.measured) == (None, ())


def test_measurements_stay_with_their_pixels(exported, zoo):
    card, path = exported
    assert run_import_of(path, zoo, "--notes", "same pixels").measured == card.measured
    changed = run_import_of(path, zoo, "--preprocessing.size", "40", "--overwrite")
    assert changed.measured == ()
    assert changed.reported_accuracy == 0.9


def test_an_entry_is_not_imported(run_import, zoo, one_line, monkeypatch):
    run_import("--headless")
    with one_line("is an entry already", str(zoo / "net")):
        main(["import", str(zoo / "net")])
    monkeypatch.setenv("JXFER_ZOO", str(zoo))
    with one_line("net is an entry already", str(zoo / "net")):
        main(["import", "net"])


def test_what_is_not_there_is_named(zoo, tmp_path, one_line):
    (tmp_path / "net.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("net.pth", ("no path or zoo entry 'net.pth'",)),
        (str(tmp_path / "net.bin"), ("unknown kind of weight file", ".safetensors")),
        (str(tmp_path / "empty"), ("card.json", ".npy")),
    ):
        with one_line(*words):
            main(["import", name, "--zoo", str(zoo)])
    assert not zoo.exists()


def test_json_holds_card_and_report(run_import, zoo, capsys):
    run_import("--headless", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["card"]["class_names"] == []
    assert {"linear.weight", "linear.bias"} <= set(shown["report"]["dropped"])


@pytest.mark.realdata
def test_import_the_partial_resnet18(test_data, zoo, capsys):
    folder = test_data / "weights" / "imagenet-resnet18-folded-partial"
    args = ["import", str(folder), "--arch", "resnet18", "--through", "stage3"]
    assert main([*args, "--zoo", str(zoo), "--name", "r18"]) == 0
    assert "folded" in capsys.readouterr().out
    card = store.verify(zoo / "r18")
    assert (card.batchnorm, card.through) == ("folded", "stage3")
    assert card.source == folder.name
