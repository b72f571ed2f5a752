"""Distances beside scipy's, closed forms, and moments computed by hand."""

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jxfer import trees
from jxfer.advise.similarity import frechet, frechet_shift, norm_shift, proxy_a_distance
from jxfer.data import sources, transforms
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import CIFAR
from jxfer.models import registry

RNG = np.random.default_rng(0)


def gaussian(dimensions, rank=None):
    factor = RNG.normal(size=(dimensions, rank or dimensions))
    return RNG.normal(size=dimensions), factor @ factor.T


def test_frechet_with_scipys_matrix_root():
    (mean_a, a), (mean_b, b) = gaussian(6), gaussian(6)
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet(mean_a, a, mean_b, b) == pytest.approx(wanted)
    assert frechet(mean_b, b, mean_a, a) == pytest.approx(wanted)


def test_frechet_of_diagonal_gaussians_is_that_of_each_axis():
    mean_a, mean_b = RNG.normal(size=(2, 5))
    deviation_a, deviation_b = RNG.uniform(0, 2, (2, 5))
    deviation_a[0] = deviation_b[1] = deviation_a[2] = deviation_b[2] = 0
    wanted = ((mean_a - mean_b) ** 2 + (deviation_a - deviation_b) ** 2).sum()
    found = frechet(mean_a, np.diag(deviation_a**2), mean_b, np.diag(deviation_b**2))
    assert found == pytest.approx(wanted)


def test_frechet_of_singular_covariances():
    """Of one rank each: tr (A B)^(1/2) = |u . v| for A = u u', B = v v'."""
    u, v = RNG.normal(size=(2, 40))
    zero = np.zeros(40)
    wanted = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet(zero, np.outer(u, u), zero, np.outer(v, v)) == pytest.approx(wanted, rel=1e-5)
    assert frechet(u, np.outer(u, u), u, np.outer(u, u)) == pytest.approx(0, abs=1e-5 * (u @ u))
    assert frechet(u, np.zeros((40, 40)), v, np.zeros((40, 40))) == pytest.approx((u - v) @ (u - v))


def draw(rows, mean, covariance, seed=1):
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, rows)


@pytest.mark.parametrize("rows", [20, 200])
def test_the_excess_of_the_sources_own_gaussian_is_near_zero_for_any_number_of_rows(rows):
    mean, covariance = gaussian(30)
    found = frechet_shift(mean, covariance, draw(rows, mean, covariance), seed=0)
    assert found.distance == pytest.approx(found.floor, rel=0.25)
    assert abs(found.excess) < 0.1
    if rows == 20:
        assert found.distance > 0.2 * np.trace(covariance)  # what the floor takes away


def test_the_floor_of_a_round_gaussian_is_the_one_that_is_stated():
    dimensions, rows = 40, 2000
    sample = draw(rows, np.zeros(dimensions), np.eye(dimensions))
    found = frechet_shift(np.zeros(dimensions), np.eye(dimensions), sample, seed=0)
    assert found.floor == pytest.approx((dimensions + 5) / (4 * rows) * dimensions, rel=0.05)


def test_the_excess_is_the_shift_in_units_of_the_variance():
    mean, covariance = np.zeros(4), np.diag([1.0, 2.0, 3.0, 4.0])
    shifted = draw(2000, np.array([0, 0, 0, 5.0]), covariance)
    wanted = pytest.approx(25 / 10, rel=0.05)
    assert frechet_shift(mean, covariance, shifted, seed=0).excess == wanted
    assert frechet_shift(mean, 9 * covariance, 3 * shifted, seed=0).excess == wanted


def test_frechet_of_one_row_is_one_line(one_line):
    with one_line("at least two images"):
        frechet_shift(np.zeros(3), np.eye(3), np.zeros((1, 3)), seed=0)


def test_proxy_a_distance_of_one_domain_is_zero_and_of_two_is_two():
    rows = RNG.normal(size=(400, 20))
    assert proxy_a_distance(rows[:200], rows[200:], seed=0) < 0.25
    assert proxy_a_distance(rows[:200], rows[200:] + 10, seed=0) == 2


def test_proxy_a_distance_is_that_of_the_best_linear_classifier():
    """N(0, I) and N(d, I): the error of the best classifier is the normal tail at |d| / 2."""
    source, target = RNG.normal(size=(2, 4000, 5))
    target[:, 0] += 2.0
    wanted = 2 * (1 - 2 * scipy.stats.norm.cdf(-1.0))
    assert proxy_a_distance(source, target, seed=0) == pytest.approx(wanted, abs=0.05)


def test_proxy_a_distance_is_of_rows_held_out_and_of_domains_of_any_size():
    noise = RNG.normal(size=(60, 300))  # 30 + 30 rows are always separable in training
    assert proxy_a_distance(noise[:30], noise[30:], seed=0) < 0.8
    rows = RNG.normal(size=(1000, 5))
    assert proxy_a_distance(rows[:950], rows[950:], seed=0) < 0.6
    assert proxy_a_distance(np.ones((9, 3)), np.ones((7, 3)), seed=0) == 0


def test_proxy_a_distance_is_a_function_of_its_seed():
    rows = RNG.normal(size=(100, 5))
    distances = [proxy_a_distance(rows[:50], rows[50:] + 0.5, seed=seed) for seed in (0, 0, 1)]
    assert distances[0] == distances[1] != distances[2]


def test_features_of_another_network_are_one_line(one_line):
    with one_line("3 features and the target 4", "not of one network"):
        proxy_a_distance(np.zeros((5, 3)), np.zeros((5, 4)), seed=0)
    with one_line("3 features and the target 4", "not of one network"):
        frechet_shift(np.zeros(3), np.eye(3), np.zeros((5, 4)), seed=0)


def test_proxy_a_distance_of_one_row_is_one_line(one_line):
    with one_line("at least two images of each domain"):
        proxy_a_distance(np.zeros((1, 3)), np.zeros((5, 3)), seed=0)


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 3, through="stage1")


@pytest.fixture(scope="module")
def norm_inputs(model):
    return jax.jit(model.norm_inputs)


@pytest.fixture(scope="module")
def target(images):
    return sources.open_for_evaluation(DataConfig(f"folder:{images}"), "test")


@pytest.fixture(scope="module")
def variables(model):
    """Random weights with statistics of no layer's own inputs, one variance 0."""
    rng = np.random.default_rng(0)
    variables = model.init(0)
    statistics = {
        path: rng.uniform(0.1, 2, leaf.shape).astype(np.float32)
        for path, leaf in trees.flatten(variables["batch_stats"]).items()
    }
    statistics["stage1/block0/norm1/var"][3] = 0
    return variables | {"batch_stats": trees.unflatten(statistics)}


def pixels(source):
    views = [
        transforms.evaluation_view(transforms.decode(source[i].image, source[i].name), CIFAR)
        for i in range(len(source))
    ]
    return transforms.normalise(np.stack(views), CIFAR)


def test_norm_shift_is_that_of_moments_taken_by_hand(model, norm_inputs, variables, target):
    """12 images in steps of 8: the last step is padded. The sums are over 8 devices."""
    found = norm_shift(model, CIFAR, variables, target, batchnorm="standard", batch_size=8)
    seen = norm_inputs(variables, pixels(target))
    assert next(iter(found.layers)) == "stem/norm"
    assert set(found.layers) == set(seen) == set(model.norm_paths())
    for path, x in seen.items():
        stage = path.split("/")
        stored = variables["batch_stats"]
        for name in stage:
            stored = stored[name]
        mean, deviation = np.mean(x, (0, 1, 2)), np.std(x, (0, 1, 2))
        gaussians = [
            frechet([m], [[s**2]], [stored_mean], [[stored_var]]) / (stored_var + 1e-5)
            for m, s, stored_mean, stored_var in zip(
                mean, deviation, stored["mean"], stored["var"], strict=True
            )
        ]
        assert found.layers[path] == pytest.approx(np.mean(gaussians), rel=1e-3), path
    wanted = [shift for path, shift in found.layers.items() if path.startswith("stage1")]
    assert found.stages == {
        "stem": found.layers["stem/norm"],
        "stage1": pytest.approx(np.mean(wanted)),
    }


def test_norm_shift_is_zero_where_the_averages_are_the_targets_own(
    model, norm_inputs, variables, target
):
    """Layer after layer gets the moments that it sees; a dead channel then shifts nothing."""
    for path in sorted(model.norm_paths(), key=lambda path: (not path.startswith("stem"), path)):
        x = norm_inputs(variables, pixels(target))[path]
        statistics = trees.flatten(variables["batch_stats"]) | {
            f"{path}/mean": np.mean(x, (0, 1, 2)),
            f"{path}/var": np.var(x, (0, 1, 2)),
        }
        variables = variables | {"batch_stats": trees.unflatten(statistics)}
    found = norm_shift(model, CIFAR, variables, target, batchnorm="standard", batch_size=8)
    assert np.mean(list(found.layers.values())) == pytest.approx(0, abs=1e-6)


def test_without_statistics_there_is_a_reason_and_no_number(model, variables, target):
    folded = norm_shift(model, CIFAR, variables, target, batchnorm="folded")
    assert (folded.stages, folded.layers) == ({}, {})
    assert "folded" in folded.reason
    plain = registry.create("vgg11", None)
    none = norm_shift(plain, CIFAR, {"params": {}}, target, batchnorm="standard")
    assert none.layers == {}
    assert "vgg11 has no norm layers" in none.reason
