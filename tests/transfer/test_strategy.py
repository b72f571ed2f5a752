import pytest

from jxfer.transfer.strategy import Phase, StrategyConfig, phases

STAGES = ("stem", "stage1", "stage2")


def test_scratch_trains_everything_at_the_full_rate():
    assert phases(StrategyConfig("scratch"), STAGES) == (Phase("scratch", ((".*", "head"),)),)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        (StrategyConfig("linear_probe"), ("frozen", "frozen", "frozen")),
        (StrategyConfig("partial", "stem"), ("frozen", "low_lr", "low_lr")),
        (StrategyConfig("partial", "stage1"), ("frozen", "frozen", "low_lr")),
        (StrategyConfig("partial", "stage2"), ("frozen", "frozen", "frozen")),
        (StrategyConfig("full"), ("low_lr", "low_lr", "low_lr")),
    ],
)
def test_a_strategy_is_one_phase_with_a_rule_for_each_stage(config, labels):
    stem, stage1, stage2 = labels
    rules = (
        ("stem/.*", stem),
        ("stage1/.*", stage1),
        ("stage2/.*", stage2),
        ("head/.*", "head"),
    )
    assert phases(config, STAGES) == (Phase(config.name, rules),)


@pytest.mark.parametrize("name", ["scratch", "linear_probe", "full"])
def test_freeze_through_goes_with_partial_alone(name, one_line):
    with one_line("--strategy.freeze-through", "partial", name):
        phases(StrategyConfig(name, "stage1"), STAGES)


@pytest.mark.parametrize("freeze_through", [None, "stage3", "head", ""])
def test_partial_needs_a_stage_that_the_model_has(freeze_through, one_line):
    with one_line("--strategy.freeze-through", "stem, stage1, stage2"):
        phases(StrategyConfig("partial", freeze_through), STAGES)


def test_new_parts_take_the_full_rate():
    (phase,) = phases(StrategyConfig("partial", "stem"), STAGES, ("stage1/block2", "stage2"))
    assert phase.rules == (
        ("stage1/block2/.*", "head"),
        ("stage2/.*", "head"),
        ("stem/.*", "frozen"),
        ("stage1/.*", "low_lr"),
        ("head/.*", "head"),
    )


@pytest.mark.parametrize(
    "config", [StrategyConfig("linear_probe"), StrategyConfig("partial", "stage1")]
)
def test_new_parts_are_never_frozen(config, one_line):
    with one_line("stage1/block2 is new", config.name, "--strategy.name full"):
        phases(config, STAGES, ("stage1/block2",))
