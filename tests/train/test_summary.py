import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from jxfer.commands.zoo import main as zoo_command
from jxfer.data import screen
from jxfer.losses.classification import LossConfig
from jxfer.train import loop, step, summary
from jxfer.train.phases import Course
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo import store
from jxfer.zoo.pretrained import ModelConfig, create_model
from jxfer.zoo.source_statistics import ARRAYS, SourceStatistics, encode
from tests.conftest import CLASSES
from tests.train.steps import prepare

FIGURES = {
    "classes": list(CLASSES),
    "val_correct": 3,
    "val_examples": 4,
    "test_correct": None,
    "test_examples": None,
    "commit": "0123abc",
}


@pytest.fixture
def chain(tmp_path, make_entry, small_config):
    """The entries `standard`, `first`, `second` and `third`; each run started from the last."""
    parent = make_entry("standard")
    folders = [parent]
    for name, strategy in (("first", "full"), ("second", "linear_probe"), ("third", "full")):
        config = small_config(
            model=ModelConfig(weights=str(parent)), strategy=StrategyConfig(strategy)
        )
        pretrained = create_model(config.model, CLASSES)
        card = summary.model_card(name, config, pretrained, FIGURES)
        parent = tmp_path / name
        store.save(parent, card, pretrained.variables)
        folders.append(parent)
    return folders


def test_a_card_holds_all_its_parents_nearest_first(chain):
    cards = [store.read_card(folder) for folder in chain]
    assert cards[0].parents == ()
    for i, card in enumerate(cards):
        assert card.parents == tuple(parent.as_ancestor() for parent in reversed(cards[:i]))
    assert [parent.name for parent in cards[3].parents] == ["second", "first", "standard"]
    assert [parent.strategy for parent in cards[3].parents] == ["linear_probe", "full", None]


def test_random_weights_have_no_parents(chain, small_config):
    config = small_config(
        model=ModelConfig(weights=str(chain[1])), strategy=StrategyConfig("scratch")
    )
    pretrained = create_model(config.model, CLASSES, scratch=True)
    assert summary.model_card("again", config, pretrained, FIGURES).parents == ()


def test_show_prints_the_parents(chain, capsys):
    zoo_command(["show", str(chain[3])])
    out = capsys.readouterr().out
    _, _, table = out.partition("parents, nearest first\n")
    header, *rows = (line.split("  ") for line in table.splitlines())
    assert header[0] == "name"
    assert [row[0] for row in rows] == ["second", "first", "standard"]
    assert rows[2][-1].strip() == store.read_card(chain[0]).tensors_sha256[:12]
    zoo_command(["show", str(chain[0])])
    assert "parents" not in capsys.readouterr().out
    zoo_command(["show", str(chain[3]), "--json"])
    assert len(json.loads(capsys.readouterr().out)["parents"]) == 3


@pytest.mark.parametrize(
    ("strategy", "modes"),
    [
        (StrategyConfig("linear_probe"), {"frozen": {"frozen": 7}, "head": {}}),
        (StrategyConfig("linear_probe", frozen_norms="adapt"), {"frozen": {"adapt": 7}}),
        (StrategyConfig("partial", "stem"), {"frozen": {"frozen": 1}, "low_lr": {"train": 6}}),
        (StrategyConfig("full", trainable_norms="frozen"), {"low_lr": {"frozen": 7}}),
        (StrategyConfig("bitfit"), {"frozen": {}, "low_lr": {"train": 7}}),
    ],
    ids=lambda value: value.name if isinstance(value, StrategyConfig) else "",
)
def test_the_norms_of_a_group_are_counted_by_how_they_run(
    strategy, modes, make_entry, small_config
):
    model = ModelConfig(weights=make_entry("standard"), through="stage1")
    _, (plan,) = prepare(small_config(model=model, strategy=strategy))
    found = summary.norms_by_label(plan)
    assert {label: found[label].modes for label in modes} == modes
    assert sum(norms.bytes for norms in found.values()) == 7 * 2 * 16 * 4


def test_optimizer_bytes_count_under_the_parameter_s_label_in_any_transform(
    make_entry, small_config
):
    model = ModelConfig(weights=make_entry("standard"), through="stage1")
    config = small_config(model=model, strategy=StrategyConfig("linear_probe"))
    _, (plan,) = prepare(config)
    head, frozen = 16 * 3 + 3, 14480
    counter = 4  # of the schedule
    shapes = plan.model.shapes()["params"]
    grouped = jax.eval_shape(plan.transform.init, {"head": shapes["head"]})
    assert summary.optimizer_bytes(plan, grouped) == {"frozen": 0, "head": 4 * head + counter}
    everything = jax.eval_shape(optax.adam(0.1).init, shapes)
    assert summary.optimizer_bytes(plan, everything) == {"frozen": 8 * frozen, "head": 8 * head}


def test_the_start_up_table_tells_what_each_group_costs(make_entry, small_config, capsys):
    model = ModelConfig(weights=make_entry("standard"), through="stage1")
    config = small_config(model=model, strategy=StrategyConfig("lp_ft"))
    pretrained, plans = prepare(config)
    course = Course(plans, plans[0].initial_state(pretrained.variables))
    splits = screen.load_splits(config.data)
    summary.print_start(config, splits, pretrained, course)
    header, *rows = capsys.readouterr().err.splitlines()[-5:]
    assert header.split()[-4:] == ["forward", "GFLOP", "backward", "GFLOP"]
    assert [(row.split()[0], row.split()[2]) for row in rows] == [
        ("head", "frozen"),
        ("head", "head"),
        ("all", "low_lr"),
        ("all", "head"),
    ]
    images = config.batch_size // jax.device_count()
    stem, block = 2 * images * 16 * 3 * 94**2, 2 * images * 16 * 16 * 94**2
    forward = f"{(stem + 6 * block) / 1e9:.4g}"
    assert rows[0].split()[-2:] == [forward, "0"]
    assert rows[2].split()[-2] == forward
    # The gradients of kernels may be other products, which take somewhat more (convolution.py).
    least = (stem + 12 * block) / 1e9
    assert 0.999 * least < float(rows[2].split()[-1]) < 1.5 * least


def test_a_start_traces_its_step_once(make_entry, small_config, tmp_path, monkeypatch):
    """The table counts the trace that training compiles."""
    traces, losses = [], step._losses
    monkeypatch.setattr(step, "_losses", lambda *given: traces.append(0) or losses(*given))
    config = small_config(
        model=ModelConfig(weights=make_entry("standard"), through="stage1"),
        strategy=StrategyConfig("full"),
        loss=LossConfig(label_smoothing=0.07),  # no other test's step
    )
    loop.run_config(config, tmp_path / "run")
    assert len(traces) == 1


def test_a_run_does_not_inherit_the_statistics_of_its_weights(make_entry, small_config):
    """Not even one that moved no weight of the backbone: its tensors are others."""
    parent = make_entry("standard")
    card = store.read_card(parent)
    statistics = SourceStatistics(
        "pooled", "digits", "train", 0, 0.1, 2, card.preprocessing, card.tensors_sha256, 1,
        *(encode(np.zeros(1)) for _ in ARRAYS),
    )  # fmt: skip
    store.write_card(parent, dataclasses.replace(card, statistics=statistics))
    config = small_config(
        model=ModelConfig(weights=str(parent)), strategy=StrategyConfig("linear_probe")
    )
    pretrained = create_model(config.model, CLASSES)
    assert pretrained.card.statistics == statistics
    assert summary.model_card("run", config, pretrained, FIGURES).statistics is None


def test_timing_gives_the_share_of_the_loop_that_waited():
    seconds = {"compile": 5.0, "data_wait": 1.0, "step": 3.0, "eval": 9.0, "prefix": 1.0}
    found = summary.timing(seconds, 20.0, steps=10, batch_size=4)
    assert found["data_wait_share"] == 0.25
    assert found["examples_per_second"] == 4.0
    assert found["seconds"] == seconds | {"total": 20.0}
    assert summary.timing(dict.fromkeys(seconds, 0.0), 1.0, 0, 4)["data_wait_share"] is None
