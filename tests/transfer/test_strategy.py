import dataclasses

import pytest

from jxfer import trees
from jxfer.transfer.labels import label_tree, trainable
from jxfer.transfer.strategy import Phase, StrategyConfig, phase_steps, phases

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


def by_stage(stem, stage1, stage2, head="head"):
    return (("stem/.*", stem), ("stage1/.*", stage1), ("stage2/.*", stage2), ("head/.*", head))


def test_lp_ft_is_a_linear_probe_and_then_full():
    probe, full = (phases(StrategyConfig(name), STAGES)[0] for name in ("linear_probe", "full"))
    assert phases(StrategyConfig("lp_ft", phase_epochs=3.0), STAGES) == (
        dataclasses.replace(probe, name="head", epochs=3.0),
        dataclasses.replace(full, name="all"),
    )


def test_gradual_adds_a_stage_a_phase_from_the_top():
    found = phases(StrategyConfig("gradual", phase_epochs=2.0), STAGES)
    assert [phase.name for phase in found] == ["head", "stage2", "stage1", "stem"]
    assert [phase.epochs for phase in found] == [2.0, 2.0, 2.0, None]
    own = [f"low_lr/{stage}" for stage in STAGES]
    assert [phase.rules for phase in found] == [
        by_stage("frozen", "frozen", "frozen"),
        by_stage("frozen", "frozen", own[2]),
        by_stage("frozen", own[1], own[2]),
        by_stage(*own),
    ]


def test_gradual_has_no_phase_for_a_new_stage():
    found = phases(StrategyConfig("gradual"), STAGES, ("stage2",))
    assert [phase.name for phase in found] == ["head", "stage1", "stem"]
    assert all(("stage2/.*", "head") in phase.rules for phase in found)


def test_surgical_trains_the_stages_that_it_is_given():
    (phase,) = phases(StrategyConfig("surgical", stages=("stage1",)), STAGES)
    assert phase.rules == by_stage("frozen", "low_lr", "frozen")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ((), ("surgical needs some of stem, stage1, stage2",)),
        (("stage7",), ("stage7: no such stage", "stem, stage1, stage2")),
        (("stem", "stem"), ("stem comes twice",)),
    ],
)
def test_surgical_needs_stages_that_the_model_has(chosen, words, one_line):
    with one_line("--strategy.stages", *words):
        phases(StrategyConfig("surgical", stages=chosen), STAGES)


PARAMS = {
    "stem": {"conv": {"kernel": 0}, "norm": {"scale": 0, "bias": 0}},
    "stage1": {
        "block0": {
            "conv1": {"kernel": 0},
            "norm1": {"scale": 0, "bias": 0},
            "downsample": {"conv": {"kernel": 0}, "norm": {"scale": 0, "bias": 0}},
        }
    },
    "stage2": {"block0": {"conv1": {"kernel": 0, "bias": 0}}},
    "head": {"linear": {"kernel": 0, "bias": 0}},
}
HEAD = {"head/linear/kernel", "head/linear/bias"}
NORMS = {
    f"{norm}/{leaf}"
    for norm in ("stem/norm", "stage1/block0/norm1", "stage1/block0/downsample/norm")
    for leaf in ("scale", "bias")
}
BIASES = {path for path in NORMS if path.endswith("bias")} | {"stage2/block0/conv1/bias"}


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize(("name", "leaves"), [("bn_only", NORMS), ("bitfit", BIASES)])
def test_bn_only_and_bitfit_train_leaves_of_their_kind_in_every_stage(name, leaves, per_stage):
    stages = STAGES[:2] if name == "bn_only" and per_stage else STAGES
    params = {stage: PARAMS[stage] for stage in (*stages, "head")}
    (phase,) = phases(StrategyConfig(name), stages, per_stage=per_stage)
    labels = label_tree(params, phase.rules)
    assert trainable(labels) == leaves | HEAD
    found = {path: trees.flatten(labels)[path] for path in leaves}
    assert found == {
        path: f"low_lr/{path.split('/')[0]}" if per_stage else "low_lr" for path in leaves
    }


def test_rates_by_stage_give_each_stage_a_label_of_its_own():
    (phase,) = phases(StrategyConfig("partial", "stem"), STAGES, per_stage=True)
    assert phase.rules == by_stage("frozen", "low_lr/stage1", "low_lr/stage2")


def test_rules_of_ones_own_are_taken_in_order():
    own = ("stage1/.*/bias=low_lr", "stage2/.*=low_lr/stage2", "head/.*=head", ".*=frozen")
    (phase,) = phases(StrategyConfig("rules", rules=own), STAGES)
    assert phase.rules == (
        ("stage1/.*/bias", "low_lr"),
        ("stage2/.*", "low_lr/stage2"),
        ("head/.*", "head"),
        (".*", "frozen"),
    )


@pytest.mark.parametrize(
    "rule", ["head", "=head", "head/.*=cold", ".*=low_lr/stage7", ".*=frozen/a"]
)
def test_a_rule_that_is_none_is_named_beside_the_labels(rule, one_line):
    with one_line(f"--strategy.rules {rule}", "PATTERN=LABEL", "low_lr/stage1"):
        phases(StrategyConfig("rules", rules=(rule,)), STAGES)


def test_rules_needs_rules(one_line):
    with one_line("--strategy.rules", "head/.*=head"):
        phases(StrategyConfig("rules"), STAGES)


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (StrategyConfig("full", stages=("stem",)), "stages"),
        (StrategyConfig("full", phase_epochs=1.0), "phase-epochs"),
        (StrategyConfig("full", rules=(".*=head",)), "rules"),
        (StrategyConfig("full", frozen_norms="adapt"), "frozen-norms"),
        (StrategyConfig("linear_probe", trainable_norms="frozen"), "trainable-norms"),
        (StrategyConfig("scratch", trainable_norms="frozen"), "trainable-norms"),
    ],
)
def test_an_option_that_the_strategy_has_no_use_for_is_refused(config, option, one_line):
    with one_line(f"--strategy.{option} goes with", f"not with {config.name}"):
        phases(config, STAGES)


def test_the_policy_for_norms_is_that_of_every_phase():
    config = StrategyConfig("lp_ft", frozen_norms="adapt", trainable_norms="frozen")
    assert [(p.frozen_norms, p.trainable_norms) for p in phases(config, STAGES)] == [
        ("adapt", "frozen")
    ] * 2


@pytest.mark.parametrize(
    ("epochs", "run_epochs", "total", "steps"),
    [
        ((None,), 4.0, 9, (9,)),
        ((None, None), 4.0, 9, (5, 4)),  # 4.5 and 4.5
        ((1.0, None), 4.0, 9, (3, 6)),
        ((1.0, 1.0, None), 4.0, 9, (3, 2, 4)),  # ends at 2.25, 4.5 and 9
    ],
)
def test_phases_share_the_steps_of_the_run(epochs, run_epochs, total, steps):
    found = [Phase("", (), e) for e in epochs]
    assert phase_steps(found, run_epochs, total, 2.25) == steps


@pytest.mark.parametrize(
    ("epochs", "run_epochs", "total", "words"),
    [
        ((4.0, None), 4.0, 9, ("the phases before the last take 4 epochs",)),
        ((0.1, 0.1, None), 0.4, 1, ("is 1 steps, too few for 3 phases",)),
    ],
)
def test_phases_that_do_not_fit_are_an_error(epochs, run_epochs, total, words, one_line):
    with one_line(f"--epochs {run_epochs:g}", *words, "raise --epochs"):
        phase_steps([Phase("", (), e) for e in epochs], run_epochs, total, 2.25)


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("inf"), float("nan")])
def test_epochs_of_a_phase_must_be_positive(epochs, one_line):
    with one_line("--strategy.phase-epochs", "above 0"):
        StrategyConfig("lp_ft", phase_epochs=epochs)


def test_bn_only_trains_in_the_stages_that_have_norms(one_line):
    stages, config = ("stem", "stage1", "fc6"), StrategyConfig("bn_only")
    (phase,) = phases(config, stages, with_norms=("stem", "stage1"), per_stage=True)
    assert [label for _, label in phase.rules] == [
        *("low_lr/stem", "low_lr/stage1", "frozen", "frozen", "frozen", "head")
    ]
    with one_line("bn_only", "no BatchNorm"):
        phases(config, stages, with_norms=())
