"""`jxfer zoo export`, in process; what the files hold is tested beside `zoo.export`."""

import dataclasses
import json

import pytest
import safetensors

from jxfer.commands.zoo import main
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card
from tests.runs import flip_a_bit, largest_file


@pytest.fixture
def zoo(tmp_path, no_zoos):
    model = registry.create("resnet20", 3)
    card = Card("small", "resnet20", ("a", "b", "c"), model.architecture.preprocessing)
    store.save(tmp_path / "zoo" / "small", card, model.init(0))
    return tmp_path / "zoo"


def test_torch(zoo, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    args = ["export", "small", "--format", "torch", "--out", str(out), "--zoo", str(zoo)]
    assert main(args) == 0
    assert "resnet20, 269,267 parameters" in capsys.readouterr().out
    with safetensors.safe_open(out, "np") as file:
        assert "layer1.0.conv1.weight" in file.keys()  # noqa: SIM118 - no mapping
        assert json.loads(file.metadata()["jxfer_card"])["class_names"] == ["a", "b", "c"]
    assert main([*args, "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"entry": str(zoo / "small"), "format": "torch", "path": str(out)}


@pytest.mark.parametrize("batchnorm", ["standard", "folded"])
def test_the_import_of_a_torch_export_is_the_entry_again(zoo, tmp_path, batchnorm):
    card, variables = store.load(zoo / "small")
    card = dataclasses.replace(card, batchnorm=batchnorm, licence="MIT", seed=3, dataset="digits")
    card = store.save(zoo / "small", card, variables, overwrite=True)
    out = str(tmp_path / "small.safetensors")
    main(["export", "small", "--format", "torch", "--out", out, "--zoo", str(zoo)])
    main(["import", out, "--name", "small", "--zoo", str(tmp_path / "other")])
    again = store.verify(tmp_path / "other" / "small")
    # The digest of the files alone may differ: it covers how Orbax laid them out.
    assert dataclasses.replace(again, files_sha256=card.files_sha256) == card


def test_stablehlo(zoo, tmp_path, capsys):
    out = tmp_path / "program"
    args = ["export", "small", "--format", "stablehlo", "--out", str(out), "--zoo", str(zoo)]
    assert main(args) == 0
    assert f"python {out}/predict.py" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"model.jaxexport", "weights.safetensors", "card.json", "predict.py"}


@pytest.mark.parametrize("format", ["torch", "stablehlo"])
def test_a_damaged_entry_writes_nothing(one_line, zoo, tmp_path, format):
    flip_a_bit(largest_file(zoo / "small"))
    out = str(tmp_path / "out" / "small.safetensors")
    with one_line("small", "damaged"):
        main(["export", "small", "--format", format, "--out", out, "--zoo", str(zoo)])
    assert not (tmp_path / "out").exists()
