"""`jxfer zoo`, in process."""

import json

import numpy as np
import pytest
import safetensors.numpy

from jxfer.commands.zoo import main
from jxfer.zoo import store
from tests import torch_reference


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A safetensors file of a CIFAR ResNet-20 with three classes."""
    reference = torch_reference.create("resnet20", 3)
    torch_reference.randomise(reference, seed=0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    tensors = {name: np.ascontiguousarray(t.numpy()) for name, t in reference.state_dict().items()}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture
def zoo(tmp_path, no_zoos):
    return tmp_path / "zoo"


def run_import(weights, zoo, *more):
    return main(["import", str(weights), "--arch", "resnet20", "--zoo", str(zoo), *more])


def test_import_then_list_show_and_verify(weights, zoo, capsys):
    assert run_import(
        weights, zoo, "--class-names", "cat, dog,owl", "--name", "pets", "--dataset", "Pets",
        "--licence", "MIT", "--source", "https://example.org/net", "--reported-accuracy", "0.875",
        "--preprocessing.size", "64", "--preprocessing.std", "0.5", "0.5", "0.5",
    ) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "loaded 97, re-initialised 0, dropped 19" in out
    assert "bn1.num_batches_tracked" in out

    card = store.verify(zoo / "pets")
    assert card.class_names == ("cat", "dog", "owl")
    assert (card.preprocessing.size, card.preprocessing.std) == (64, (0.5, 0.5, 0.5))
    assert card.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (card.licence, card.dataset, card.source) == ("MIT", "Pets", "https://example.org/net")
    assert (card.through, card.batchnorm, card.reported_accuracy) == (None, "standard", 0.875)

    assert main(["list", "--zoo", str(zoo)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["name", "arch"]
    assert row.split()[:2] == ["pets", "resnet20"]
    assert "87.50% as reported" in row

    assert main(["show", "pets", "--zoo", str(zoo)]) == 0
    assert "cat, dog, owl" in capsys.readouterr().out
    assert main(["verify", "pets", "--zoo", str(zoo)]) == 0
    assert "ok" in capsys.readouterr().out


def test_json(weights, zoo, capsys):
    run_import(weights, zoo, "--class-names", "a,b,c", "--json")
    imported = json.loads(capsys.readouterr().out)
    assert imported["path"] == str(zoo / "net")
    assert len(imported["report"]["loaded"]) == 97
    assert imported["report"]["reinitialised"] == []
    assert len(imported["report"]["dropped"]) == 19
    main(["list", "--zoo", str(zoo), "--json"])
    (listed,) = json.loads(capsys.readouterr().out)
    main(["show", "net", "--zoo", str(zoo), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert listed == shown == {"path": str(zoo / "net"), **imported["card"]}
    main(["verify", "net", "--zoo", str(zoo), "--json"])
    verified = json.loads(capsys.readouterr().out)
    assert verified["ok"]
    assert verified["tensors_sha256"] == shown["tensors_sha256"]


def test_through_keeps_no_head(weights, zoo, capsys):
    run_import(weights, zoo, "--through", "stage2")
    card = store.read_card(zoo / "net")
    assert (card.through, card.class_names) == ("stage2", ())
    assert "layer3.0.conv1.weight" in capsys.readouterr().out


def test_headless_keeps_all_stages(weights, zoo):
    run_import(weights, zoo, "--headless")
    card = store.read_card(zoo / "net")
    assert (card.through, card.class_names) == (None, ())


def test_class_names_from_a_file(weights, zoo, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog, brown\n\nowl\n")
    run_import(weights, zoo, "--class-names", str(tmp_path / "names.txt"))
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
def test_import_refuses(one_line, weights, zoo, options, words):
    with one_line(*words):
        run_import(weights, zoo, *options)
    assert not zoo.exists()


def test_a_file_without_head(one_line, weights, zoo, tmp_path):
    tensors = safetensors.numpy.load_file(weights)
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("linear")}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    with one_line("bare.safetensors holds no head", "--headless"):
        run_import(tmp_path / "bare.safetensors", zoo, "--class-names", "a,b,c")


def test_overwrite(one_line, weights, zoo):
    run_import(weights, zoo, "--headless")
    with one_line("exists"):
        run_import(weights, zoo, "--headless")
    run_import(weights, zoo, "--headless", "--overwrite", "--notes", "second")
    assert store.read_card(zoo / "net").notes == "second"


def test_verify_a_damaged_entry(one_line, weights, zoo):
    run_import(weights, zoo, "--headless")
    largest = max((zoo / "net").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with one_line("net", "damaged"):
        main(["verify", "net", "--zoo", str(zoo)])


def test_an_empty_zoo(zoo, capsys):
    assert main(["list"]) == 0
    assert "jxfer zoo import" in capsys.readouterr().out
    main(["list", "--json"])
    assert json.loads(capsys.readouterr().out) == []


def test_help(capsys):
    for args in (["--help"], ["import", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
    assert "--class-names" in capsys.readouterr().out


@pytest.mark.realdata
def test_import_the_partial_resnet18(test_data, zoo, capsys):
    folder = test_data / "weights" / "imagenet-resnet18-folded-partial"
    args = ["import", str(folder), "--arch", "resnet18", "--through", "stage3"]
    assert main([*args, "--zoo", str(zoo), "--name", "r18"]) == 0
    assert "folded" in capsys.readouterr().out
    card = store.verify(zoo / "r18")
    assert (card.batchnorm, card.through) == ("folded", "stage3")
    assert card.source == folder.name
