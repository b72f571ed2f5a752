"""`jxfer zoo diff`, in process."""

import json

import numpy as np
import pytest

from jxfer import trees
from jxfer.commands.zoo import main
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card


@pytest.fixture
def zoo(tmp_path, no_zoos):
    """`before`, and `after` with a new head and a stage-3 kernel that moved by 1 %."""
    model = registry.create("resnet20", 3)
    variables = model.init(0)
    card = Card("before", "resnet20", ("a", "b", "c"), model.architecture.preprocessing)
    store.save(tmp_path / "before", card, variables)
    flat = trees.flatten(variables)
    flat["params/stage3/block2/conv2/kernel"] = flat[
        "params/stage3/block2/conv2/kernel"
    ] * np.float32(1.01)
    flat["params/head/linear/kernel"] = np.zeros((64, 5), np.float32)
    flat["params/head/linear/bias"] = np.zeros(5, np.float32)
    card = Card("after", "resnet20", tuple("vwxyz"), model.architecture.preprocessing)
    store.save(tmp_path / "after", card, trees.unflatten(flat))
    return str(tmp_path)


def test_the_table(zoo, capsys):
    assert main(["diff", "before", "after", "--zoo", zoo]) == 0
    out = capsys.readouterr().out
    lines = {tuple(line.split()[:2]): line for line in out.splitlines()}
    assert "same bits" in lines["stage1", "parameters"]
    assert "same bits" in lines["stage3", "statistics"]
    assert "same bits" not in lines["stage3", "parameters"]
    assert ("head", "parameters") not in lines
    assert "params/head/linear/kernel (64, 3) in A, (64, 5) in B" in out
    assert "stage3/block2/conv2/kernel" not in out
    main(["diff", "before", "after", "--zoo", zoo, "--leaves"])
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("stage3/block2/conv2/kernel")
    )
    assert line.split()[-2:] == ["0.01", "1.000000"]


def test_json(zoo, capsys):
    main(["diff", "before", "after", "--zoo", zoo, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["a"]["name"], found["b"]["name"]) == ("before", "after")
    (moved,) = (leaf for leaf in found["leaves"] if not leaf["same_bits"])
    assert moved["name"] == "stage3/block2/conv2/kernel"
    assert moved["relative"] == pytest.approx(0.01, rel=1e-5)
    assert moved["cosine"] == pytest.approx(1)
    assert [leaf["b"] for leaf in found["other_shape"]] == [[5], [64, 5]]


def test_another_architecture_lists_what_does_not_compare(zoo, tmp_path, capsys):
    model = registry.create("resnet32", None)
    card = Card("deeper", "resnet32", (), model.architecture.preprocessing)
    store.save(tmp_path / "deeper", card, model.init(1))
    main(["diff", "before", "deeper", "--zoo", zoo])
    out = capsys.readouterr().out
    assert "only in A: 2\n  params/head/linear/bias" in out
    assert "only in B: 60\n" in out


def test_a_name_that_no_zoo_knows(one_line, zoo):
    with one_line("'befor'", "did you mean before?"):
        main(["diff", "befor", "after", "--zoo", zoo])
