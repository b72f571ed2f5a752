"""What a phase caches follows from what no step changes, and from what repeats."""

import pytest

from jxfer.data import screen
from jxfer.data.transforms import AugmentConfig
from jxfer.models.heads import HeadConfig
from jxfer.train import prefix_choice
from jxfer.transfer.strategy import StrategyConfig
from tests.train.conftest import make_course

PROBE, PARTIAL = StrategyConfig("linear_probe"), StrategyConfig("partial", "stem")


def plans_of(config):
    return make_course(config).plans


def choices(config):
    splits = screen.load_splits(config.data)
    return [prefix_choice.choose(plan, config, splits) for plan in plans_of(config)]


@pytest.mark.parametrize(
    ("strategy", "head", "outputs"),
    [
        (PROBE, HeadConfig(), ["pooled"]),
        (PROBE, HeadConfig("conv", (4,)), ["stage1"]),
        (PARTIAL, HeadConfig(), ["stem"]),
        (StrategyConfig("full"), HeadConfig(), [None]),
        (StrategyConfig("surgical", stages=("stem",)), HeadConfig(), [None]),
        (StrategyConfig("surgical", stages=("stage1",)), HeadConfig(), ["stem"]),
        (StrategyConfig("bn_only"), HeadConfig(), [None]),
        (StrategyConfig("linear_probe", frozen_norms="adapt"), HeadConfig(), [None]),
        (StrategyConfig("lp_ft"), HeadConfig(), ["pooled", None]),
    ],
)
def test_what_is_cached_is_what_no_step_changes(strategy, head, outputs, prefix_config):
    assert [choice.output for choice in choices(prefix_config(strategy, head=head))] == outputs


def test_the_forms_count_every_view(prefix_config):
    [choice] = choices(prefix_config(PARTIAL))
    assert (choice.train.rows, choice.val.rows) == (36, 15)
    assert choice.train.shape == (32, 32, 16)
    assert choice.bytes == 51 * 32 * 32 * 16 * 4
    few = prefix_config(augment=AugmentConfig(flip=True, views=2))
    [choice] = choices(few)
    assert (choice.train.rows, choice.val.rows, choice.views) == (72, 15, 2)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mode": "off"}, "it is off"),
        ({"augment": AugmentConfig(flip=True)}, "new views"),
        ({"augment": AugmentConfig(mixup=0.2)}, "mixing makes new images"),
        ({"augment": AugmentConfig(flip=True, views=3)}, "too few passes"),
        ({"epochs": 1.0}, "too few passes"),
        ({"max_gb": 1e-6}, "more than --cache.max-gb"),
        ({"strategy": StrategyConfig("full")}, "the first stage trains"),
    ],
)
def test_auto_caches_where_it_wins_and_says_why_not(fields, reason, prefix_config):
    [choice] = choices(prefix_config(**fields))
    assert choice.output is None
    assert reason in choice.describe()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": StrategyConfig("full")}, ("--cache.mode memory", "full", "the first stage")),
        ({"augment": AugmentConfig(flip=True)}, ("--cache.mode memory", "--augment.views")),
        ({"max_gb": 1e-6}, ("the features take", "--cache.max-gb 1e-06")),
    ],
)
def test_a_cache_that_is_asked_for_and_cannot_be_is_an_error(
    fields, words, prefix_config, one_line
):
    config = prefix_config(mode="memory", **fields)
    with one_line(*words):
        prefix_choice.choose_all(plans_of(config), config, screen.load_splits(config.data))


def test_auto_leaves_half_of_the_memory(prefix_config, monkeypatch):
    monkeypatch.setattr(prefix_choice.machine, "memory_bytes", lambda: 2 * 51 * 16 * 4 - 1)
    [choice] = choices(prefix_config())
    assert "half of this machine's memory" in choice.describe()
    [choice] = choices(prefix_config(mode="memory"))
    assert choice.output == "pooled"


def test_the_table_says_what_it_saves(prefix_config):
    [choice] = choices(prefix_config())
    assert "the output of pooled, 0.0 MB; 1 of 4 passes" in choice.describe()
    assert "100% of the forward pass" in choice.describe()
    [choice] = choices(prefix_config(PARTIAL))
    assert "3.3 MB" in choice.describe()


def test_shared_is_off_where_auto_is(prefix_config):
    [choice] = choices(prefix_config(StrategyConfig("full"), mode="shared"))
    assert choice.output is None
