import pytest

from jxfer.transfer.labels import base, label_tree, train_layers, trainable

PARAMS = {
    "stem": {"conv": {"kernel": 0}, "norm": {"scale": 0, "bias": 0}},
    "stage1": {"conv1": {"kernel": 0}, "norm1": {"scale": 0, "bias": 0}},
    "head": {"linear": {"kernel": 0, "bias": 0}},
}
NORMS = ("stage1/norm1", "stem/norm")


def test_the_first_rule_that_matches_wins():
    rules = [("stem/norm/.*", "low_lr"), ("stem/.*", "frozen"), (".*", "head")]
    assert label_tree(PARAMS, rules) == {
        "stem": {"conv": {"kernel": "frozen"}, "norm": {"scale": "low_lr", "bias": "low_lr"}},
        "stage1": {"conv1": {"kernel": "head"}, "norm1": {"scale": "head", "bias": "head"}},
        "head": {"linear": {"kernel": "head", "bias": "head"}},
    }


@pytest.mark.parametrize("pattern", ["stem", "conv/kernel", "tem/.*", "stem/.*/kerne"])
def test_a_pattern_matches_the_whole_path_not_a_part_of_it(pattern, one_line):
    with one_line("no label rule covers the parameter stem/conv/kernel"):
        label_tree(PARAMS, [(pattern, "frozen"), ("stem/norm/.*|stage1/.*|head/.*", "head")])


def test_a_leaf_that_no_rule_covers_is_named(one_line):
    with one_line("no label rule covers the parameter stage1/conv1/kernel"):
        label_tree(PARAMS, [("stem/.*", "frozen"), ("head/.*", "head")])


def test_a_rule_that_matches_nothing_is_named(one_line):
    with one_line("('stage7/.*', 'low_lr')", "decides no parameter"):
        label_tree(PARAMS, [("stage7/.*", "low_lr"), (".*", "head")])


def test_a_rule_that_only_earlier_rules_match_is_named(one_line):
    with one_line("('stem/norm/.*', 'low_lr')", "decides no parameter"):
        label_tree(PARAMS, [("stem/.*", "frozen"), ("stem/norm/.*", "low_lr"), (".*", "head")])


def test_an_unknown_label_is_named_beside_the_known_ones(one_line):
    with one_line("'cold'", "stem/.*", "frozen, low_lr, head"):
        label_tree(PARAMS, [("stem/.*", "cold"), (".*", "head")])


def test_a_pattern_that_is_no_regular_expression_is_named(one_line):
    with one_line("'stem/('", "no regular expression"):
        label_tree(PARAMS, [("stem/(", "frozen"), (".*", "head")])


def test_frozen_leaves_are_those_that_do_not_train():
    labels = label_tree(PARAMS, [("stem/.*", "frozen"), ("stage1/.*", "low_lr"), (".*", "head")])
    assert trainable(labels) == {
        "stage1/conv1/kernel",
        "stage1/norm1/scale",
        "stage1/norm1/bias",
        "head/linear/kernel",
        "head/linear/bias",
    }


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("head/.*", "head"), (".*", "frozen")], set()),
        ([("stem/.*", "frozen"), (".*", "head")], {"stage1/norm1"}),
        ([(".*norm/bias", "low_lr"), (".*", "frozen")], {"stem/norm"}),
        ([(".*/kernel", "head"), (".*", "frozen")], set()),
        ([(".*", "head")], {"stem/norm", "stage1/norm1"}),
    ],
)
def test_a_norm_trains_exactly_where_one_of_its_parameters_does(rules, expected):
    assert train_layers(label_tree(PARAMS, rules), NORMS) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("head/.*", "head"), (".*", "frozen")], {"head/dropout"}),
        ([("head/.*|fc6/bias", "head"), (".*", "frozen")], {"fc6/dropout", "head/dropout"}),
        ([("fc60/.*", "head"), (".*", "frozen")], set()),
        ([("fc6/.*", "head"), (".*", "frozen")], {"fc6/dropout"}),
        ([(".*", "frozen")], set()),
    ],
)
def test_a_dropout_drops_exactly_where_a_parameter_beside_it_trains(rules, expected):
    layer = {"kernel": 0, "bias": 0}
    params = {"fc6": layer, "fc60": layer, "head": {"linear": layer}}
    labels = label_tree(params, rules)
    assert train_layers(labels, (), ("fc6/dropout", "head/dropout")) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, {"stage1/norm1"}),
        ({"frozen_norms": "adapt"}, {"stem/norm", "stage1/norm1"}),
        ({"trainable_norms": "frozen"}, set()),
        ({"frozen_norms": "adapt", "trainable_norms": "frozen"}, {"stem/norm"}),
    ],
)
def test_the_policy_says_which_norms_follow_the_batch(policy, expected):
    labels = label_tree(PARAMS, [("stem/.*", "frozen"), (".*", "head")])
    assert train_layers(labels, NORMS, **policy) == expected


def test_a_label_may_name_a_stage():
    labels = label_tree(PARAMS, [("stem/.*", "low_lr/stem"), (".*", "head")])
    assert "stem/conv/kernel" in trainable(labels)
    assert (base("low_lr/stem"), base("head")) == ("low_lr", "head")


@pytest.mark.parametrize("label", ["low_lr/", "head/stem", "frozen/stem", "low_lr/a/b"])
def test_only_low_lr_takes_a_stage(label, one_line):
    with one_line(label):
        label_tree(PARAMS, [(".*", label)])
