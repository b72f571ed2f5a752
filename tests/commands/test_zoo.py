"""`jxfer zoo`, in process."""

import json

import pytest

from jxfer.commands.main import main as jxfer
from jxfer.commands.zoo import main
from jxfer.data.transforms import CIFAR
from jxfer.errors import UserError
from jxfer.zoo import store, zoos
from jxfer.zoo.card import Card
from tests.runs import flip_a_bit, largest_file


def test_import_then_list_show_and_verify(zoo, capsys, run_import):
    assert run_import(
        "--class-names", "cat, dog,owl", "--name", "pets", "--dataset", "Pets",
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


def test_json(zoo, capsys, run_import):
    run_import("--class-names", "a,b,c", "--json")
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


def test_verify_a_damaged_entry(one_line, zoo, run_import):
    run_import("--headless")
    flip_a_bit(largest_file(zoo / "net"))
    with one_line("net", "damaged"):
        main(["verify", "net", "--zoo", str(zoo)])


def test_an_empty_zoo(zoo, capsys):
    assert main(["list"]) == 0
    assert "jxfer zoo import" in capsys.readouterr().out
    main(["list", "--json"])
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_an_invalid_card_hides_no_other_entry(json_option, zoo, capsys, no_zoos):
    """As `ls` of a file that it cannot read: the others, a line on stderr, and the exit code."""
    for name in ("first", "last"):
        (zoo / name).mkdir(parents=True)
        card = Card(name, "resnet20", ("cat", "dog"), CIFAR)
        (zoo / name / "card.json").write_text(card.to_json())
    (zoo / "between").mkdir()
    (zoo / "between" / "card.json").write_text("{")
    assert jxfer(["zoo", "list", "--zoo", str(zoo), *json_option]) == 2
    out, err = capsys.readouterr()
    if json_option:
        assert [entry["name"] for entry in json.loads(out)] == ["first", "last"]
    else:
        assert [row.split()[0] for row in out.splitlines()] == ["name", "first", "last"]
    (line,) = err.splitlines()
    assert f"{zoo}/between/card.json: not valid JSON" in line
    assert "import the entry again" in line
    with pytest.raises(UserError, match=r"between/card\.json"):
        zoos.list_zoo(str(zoo))


def test_help(capsys):
    for args in (["--help"], ["import", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
    assert "--class-names" in capsys.readouterr().out
