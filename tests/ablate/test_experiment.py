"""What an experiment may declare, and what a file must hold."""

import pytest

from jxfer.ablate import experiment
from jxfer.ablate.experiment import Cell, Experiment, Setting
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.zoo.pretrained import ModelConfig

RATES = ({"lr": 0.1}, {"lr": 0.2})


def make(**changes):
    fields = {
        "title": "a table",
        "settings": (Setting("one"), Setting("two")),
        "arms": ("a", "b"),
        "cell": lambda *_: TrainConfig(DataConfig("digits")),
        "seeds": (0, 1),
        "choices": {"a": RATES, "b": RATES},
        "tuning_seeds": (100,),
    }
    return Experiment(**(fields | changes))


def test_the_budget_is_what_each_arm_may_try():
    assert make().budget == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choices": {"a": RATES, "b": RATES[:1]}}, ["budget", "a 2, b 1"]),
        ({"choices": {"a": (), "b": ()}}, ["budget"]),
        ({"choices": {"a": RATES}}, ["each arm"]),
        ({"tuning_seeds": ()}, ["tuning seeds"]),
        ({"tuning_seeds": (1, 2)}, ["seed 1", "search"]),
        ({"seeds": (0, 0)}, ["two seeds"]),
        ({"settings": (Setting("one"), Setting("one"))}, ["two settings", "one, one"]),
        ({"settings": ()}, ["needs a setting"]),
        ({"tune_in": lambda _: Setting("three")}, ["tune_in", "'three'"]),
        ({"measures": {"test accuracy": len}}, ["measured anyway"]),
        ({"settings": (Setting("one", x=float("nan")),)}, ["finite"]),
    ],
)
def test_what_makes_no_fair_table_is_one_line(one_line, changes, words):
    with one_line("a table", *words):
        make(**changes)


def test_a_cell_names_its_parent_exactly_if_it_has_one(one_line):
    plain = TrainConfig(DataConfig("digits"))
    child = TrainConfig(DataConfig("digits"), model=ModelConfig(weights=experiment.PARENT))
    assert Cell(child, after=Cell(plain)).after == Cell(plain)
    for config, after in ((plain, Cell(plain)), (child, None)):
        with one_line("PARENT"):
            Cell(config, after)


def test_a_file_is_read_with_its_docstring_and_its_folder_on_the_path(declare, tmp_path):
    (tmp_path / "neighbour.py").write_text("TITLE = 'from beside'\n")
    file = declare("title=__import__('neighbour').TITLE")
    found = experiment.load(file, small=True)
    assert (found.name, found.experiment.seeds) == ("table-small", (0, 1))
    assert found.experiment.title == "from beside"
    assert found.doc.startswith("Claim:")
    assert experiment.load(file).name == "table"


def test_a_file_that_declares_nothing_is_one_line(one_line, tmp_path):
    with one_line("nothing.py", "no such"):
        experiment.load(tmp_path / "nothing.py")
    for name, words in (("table.py", "no function experiment"), ("table.txt", "a Python file")):
        (tmp_path / name).write_text("")
        with one_line(name, words):
            experiment.load(tmp_path / name)
