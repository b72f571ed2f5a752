import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.zoo import diff

STAGES = ("stem", "stage1", "stage2", "stage3")


def tree(**leaves):
    return trees.unflatten(
        {path.replace("_of_", "/"): np.array(leaf, np.float32) for path, leaf in leaves.items()}
    )


def test_a_leaf_by_hand():
    a = tree(params_of_stem_of_kernel=[3.0, 4.0])
    b = tree(params_of_stem_of_kernel=[3.0, 0.0])
    (leaf,) = diff.compare(a, b, STAGES).leaves
    assert (leaf.name, leaf.kind, leaf.elements) == ("stem/kernel", "parameters", 2)
    assert (leaf.norm_a, leaf.norm_b, leaf.distance) == (5, 3, 4)
    assert leaf.relative == pytest.approx(0.8)
    assert leaf.cosine == pytest.approx(0.6)
    assert not leaf.same_bits


def test_a_stage_is_its_leaves_as_one_vector():
    rng = np.random.default_rng(0)
    a, b = (
        {"params": {"stage1": {"x": rng.normal(size=(3, 4)), "y": rng.normal(size=5)}}}
        for _ in range(2)
    )
    (stage,) = diff.compare(a, b, STAGES).stages
    u, v = (np.concatenate([t["params"]["stage1"][name].ravel() for name in "xy"]) for t in (a, b))
    assert stage.elements == 17
    assert stage.norm_a == pytest.approx(np.linalg.norm(u))
    assert stage.norm_b == pytest.approx(np.linalg.norm(v))
    assert stage.distance == pytest.approx(np.linalg.norm(v - u))
    assert stage.relative == pytest.approx(np.linalg.norm(v - u) / np.linalg.norm(u))
    assert stage.cosine == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def test_zero_has_no_direction():
    zero, one = tree(params_of_stem_of_b=[0.0]), tree(params_of_stem_of_b=[2.0])
    (leaf,) = diff.compare(zero, one, STAGES).leaves
    assert (leaf.distance, leaf.relative, leaf.cosine) == (2, None, None)
    (leaf,) = diff.compare(one, zero, STAGES).leaves
    assert (leaf.distance, leaf.relative, leaf.cosine) == (2, 1, None)
    (leaf,) = diff.compare(zero, zero, STAGES).leaves
    assert (leaf.distance, leaf.cosine, leaf.same_bits) == (0, None, True)


def test_equal_numbers_of_other_bits_are_told_apart():
    zero, minus = tree(params_of_stem_of_b=[0.0, 1.0]), tree(params_of_stem_of_b=[-0.0, 1.0])
    (leaf,) = diff.compare(zero, minus, STAGES).leaves
    assert leaf.distance == 0
    assert not leaf.same_bits


def test_a_small_change_is_not_lost_to_cancellation():
    a = tree(params_of_stem_of_b=np.full(100, 1e4))
    b = tree(params_of_stem_of_b=np.full(100, 1e4))
    moved = np.nextafter(np.float32(1e4), np.float32(2e4))
    b["params"]["stem"]["b"][7] = moved
    (leaf,) = diff.compare(a, b, STAGES).leaves
    assert leaf.distance == float(moved) - 1e4
    assert -1 <= leaf.cosine <= 1


def test_every_leaf_is_somewhere_and_stages_come_in_order(variables):
    flat = trees.flatten(variables)
    other = dict(flat)
    del other["params/stage2/block1/conv1/kernel"]
    other["params/stage9/kernel"] = np.ones(2, np.float32)
    other["params/head/linear/bias"] = np.ones(7, np.float32)
    other["batch_stats/stage1/block0/norm1/mean"] = flat[
        "batch_stats/stage1/block0/norm1/mean"
    ] + np.float32(0.5)
    found = diff.compare(variables, trees.unflatten(other), STAGES)
    assert found.only_a == ("params/stage2/block1/conv1/kernel",)
    assert found.only_b == ("params/stage9/kernel",)
    assert found.other_shape == (diff.OtherShape("params/head/linear/bias", (3,), (7,)),)
    assert len(found.leaves) == len(flat) - 2
    assert [(stage.name, stage.kind) for stage in found.stages] == [
        *((name, "parameters") for name in (*STAGES, "head")),
        *((name, "statistics") for name in STAGES),
    ]
    moved = [leaf for leaf in found.leaves if not leaf.same_bits]
    assert [(leaf.name, leaf.kind) for leaf in moved] == [
        ("stage1/block0/norm1/mean", "statistics")
    ]
    assert moved[0].distance == pytest.approx(0.5 * 4)  # 16 channels
    assert [stage.name for stage in found.stages if not stage.same_bits] == ["stage1"]


def test_the_same_entry(variables):
    found = diff.compare(variables, jax.tree.map(np.copy, variables), STAGES)
    assert all(leaf.same_bits and leaf.distance == 0 for leaf in found.leaves)
    assert found.only_a == found.only_b == found.other_shape == ()


def test_values_that_are_not_finite_have_no_cosine():
    a = tree(params_of_stem_of_kernel=[3.0, 4.0])
    b = tree(params_of_stem_of_kernel=[3.0, np.nan])
    (leaf,) = diff.compare(a, b, STAGES).leaves
    assert leaf.cosine is None
