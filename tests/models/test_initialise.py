"""Random starting values: their variances, and what they depend on."""

import numpy as np
import pytest

from jxfer.models.initialise import draw


@pytest.mark.parametrize(
    ("path", "shape", "variance"),
    [
        ("params/stage2/block0/conv1/kernel", (3, 3, 32, 64), 2 / (9 * 64)),
        ("params/stage2/block0/conv2/kernel", (3, 3, 4, 128), 2 / (9 * 128)),  # 32 groups
        ("params/stage1/conv/kernel", (11, 11, 3, 64), 2 / (121 * 64)),
        ("params/head/conv1/kernel", (3, 3, 64, 32), 2 / (9 * 32)),
        ("params/fc6/kernel", (6, 6, 16, 64), 2 / (36 * 16)),
        ("params/fc7/kernel", (1, 1, 256, 64), 2 / 256),
        ("params/head/hidden1/kernel", (256, 64), 2 / 256),
        ("params/head/linear/kernel", (256, 64), 1 / 256),
    ],
)
def test_kernels_have_the_variance_of_their_rule(path, shape, variance):
    values = draw(path, shape, seed=0)
    assert values.dtype == np.float32
    # The variance of n values is off by sqrt(2 / n) of it; 5 of these.
    assert values.var() == pytest.approx(variance, rel=5 * (2 / values.size) ** 0.5)
    assert abs(values.mean()) < 5 * (variance / values.size) ** 0.5


def test_norms_start_as_the_identity_and_biases_at_zero():
    for name, value in (("scale", 1), ("var", 1), ("bias", 0), ("mean", 0)):
        assert (draw(f"params/stem/norm/{name}", (5,), 0) == value).all()


def test_a_leaf_that_no_rule_knows_is_an_error():
    with pytest.raises(ValueError, match="no rule draws params/stem/gain"):
        draw("params/stem/gain", (5,), 0)
