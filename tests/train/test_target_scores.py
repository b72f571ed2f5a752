"""Each score beside a plain formula in float64, and the estimates beside closed forms.

The shift of the estimates: sources N(0, 1), targets N(mu, 1), and an error at x with probability
Phi(x - 1). So w(x) = exp(mu x - mu^2 / 2), and as E Phi(x - 1) = Phi((mu - 1) / sqrt 2) over
N(mu, 1), all of the following is known.
"""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.linear_model

from jxfer.train import target_scores


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True)


def target_error(mu):
    return scipy.stats.norm.cdf((mu - 1) / math.sqrt(2))


def draw(rng, images):
    """Features [N, 1] and errors [N] of source images."""
    x = rng.normal(size=(images, 1))
    return x, rng.random(images) < scipy.stats.norm.cdf(x[:, 0] - 1)


def exact_weights(x, mu):
    return np.exp(mu * x[:, 0] - mu**2 / 2)


def test_entropy_is_that_of_scipy_with_its_sign_turned(rng):
    probabilities = softmax(rng.normal(size=(7, 5)))
    wanted = -np.mean(scipy.stats.entropy(probabilities, axis=1))
    assert target_scores.entropy(probabilities) == pytest.approx(wanted, rel=1e-14)
    sure = np.eye(3, dtype=np.float32)
    assert target_scores.entropy(sure) == 0
    assert target_scores.entropy(np.full((4, 8), 0.125)) == pytest.approx(-math.log(8), rel=1e-14)


def density_of_loops(probabilities, temperature):
    rows = [row / math.sqrt(sum(p * p for p in row)) for row in probabilities.astype(np.float64)]
    entropies = []
    for i, row in enumerate(rows):
        likeness = [
            math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / temperature)
            for j, other in enumerate(rows)
            if j != i
        ]
        shares = [value / sum(likeness) for value in likeness]
        entropies.append(-sum(share * math.log(share) for share in shares))
    return sum(entropies) / len(entropies)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("images", [2, 3, 17])
def test_density_is_that_of_two_loops(images, temperature, rng):
    probabilities = softmax(2 * rng.normal(size=(images, 4))).astype(np.float32)
    found = target_scores.soft_neighbourhood_density(probabilities, temperature)
    wanted = density_of_loops(probabilities, temperature)
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("images", [3, 4, 5, 8, 30, 31])
def test_density_in_blocks_is_density_at_once(images, rng, monkeypatch):
    probabilities = softmax(2 * rng.normal(size=(images, 4)))
    at_once = target_scores.soft_neighbourhood_density(probabilities)
    monkeypatch.setattr(target_scores, "_BLOCK", 4)
    in_blocks = target_scores.soft_neighbourhood_density(probabilities)
    assert in_blocks == pytest.approx(at_once, rel=1e-13)


def test_density_prefers_dense_clusters_to_an_even_smear(rng):
    """Of four clusters of 50 each image has 49 like neighbours: exp(-20) is what an image
    of another cluster weighs beside one of its own."""
    clusters = np.repeat(np.eye(4), 50, axis=0)
    smear = rng.dirichlet(np.ones(4), 200)
    dense, looser, smeared = (
        target_scores.soft_neighbourhood_density((1 - share) * clusters + share * smear)
        for share in (0, 0.2, 1)
    )
    assert dense == pytest.approx(math.log(49), abs=1e-6)
    assert dense > max(looser, smeared)


def test_density_is_largest_where_all_images_get_one_class():
    one_class = np.tile(np.eye(4)[0], (10, 1))
    assert target_scores.soft_neighbourhood_density(one_class) == pytest.approx(math.log(9))


@pytest.mark.parametrize("score", [target_scores.entropy, target_scores.soft_neighbourhood_density])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_predictions_that_diverged_score_below_all_others(score, bad):
    probabilities = np.full((5, 3), 1 / 3)
    assert math.isfinite(score(probabilities))
    probabilities[3, 1] = bad
    assert score(probabilities) == -math.inf


@pytest.mark.parametrize("score", [target_scores.entropy, target_scores.soft_neighbourhood_density])
@pytest.mark.parametrize("images", [0, 1])
def test_one_target_image_is_too_few(score, images, one_line):
    with one_line("at least two", f"not {images}"):
        score(np.full((images, 2), 0.5))


def test_the_risk_is_that_of_the_definition(rng):
    weights, losses = rng.gamma(2, 0.6, 50), rng.random(50) < 0.4
    covariance = np.cov(weights * losses, weights)
    eta = -covariance[0, 1] / covariance[1, 1]
    wanted = np.mean(weights * losses) + eta * np.mean(weights) - eta
    assert target_scores.controlled_risk(weights, losses) == pytest.approx(wanted, rel=1e-12)


def test_equal_weights_leave_the_mean(rng):
    losses = rng.random(50)
    for weight in (1.0, 0.1):
        found = target_scores.controlled_risk(np.full(50, weight), losses)
        assert found == np.mean(weight * losses)


def test_the_control_variate_takes_away_the_variance_that_theory_says():
    """At mu = 1 four fifths of it: 0.21 is left of 2,000 draws.

    With E w^2 l = exp(mu^2) e(2 mu), e the error at a mean, 1 - Corr(w l, w)^2 is known. The
    estimate of either variance from n draws, near normal as means of 1,000 images, has the relative
    standard deviation sqrt(2 / (n - 1)); that of their ratio is at most sqrt 2 times that.
    """
    mu, images, draws = 1.0, 1000, 2000
    rng = np.random.default_rng(0)
    plain, controlled = np.empty((2, draws))
    for i in range(draws):
        x, wrong = draw(rng, images)
        weights = exact_weights(x, mu)
        plain[i] = np.mean(weights * wrong)
        controlled[i] = target_scores.controlled_risk(weights, wrong)
    mean, square = target_error(mu), math.exp(mu**2) * target_error(2 * mu)
    variance, of_weights = square - mean**2, math.expm1(mu**2)
    left = 1 - (square - mean) ** 2 / (variance * of_weights)
    assert 0.2 < left < 0.22
    tolerance = 4 * math.sqrt(2) * math.sqrt(2 / (draws - 1))
    assert np.var(controlled) / np.var(plain) == pytest.approx(left, rel=tolerance)
    # eta is taken from the same images: a bias of order 1 / n, beside a deviation of 1 / sqrt n
    spread = math.sqrt(variance * left / images)
    assert np.mean(controlled) == pytest.approx(mean, abs=spread / 4)


@pytest.mark.parametrize("images", [10_000, 2_500])
def test_the_density_ratio_of_two_gaussians_is_the_known_one(images, rng):
    """Their log ratio is linear, so a logistic regression is the right model, at any sizes.

    Its coefficients are off by d of covariance I^-1, with I the Fisher information of the rows z
    (1, x). So d' I d is of chi-square with 3 degrees, and (z' d)^2 <= (z' I^-1 z) (d' I d) bounds
    the error at every x.
    """
    mean, sources = np.array([0.8, -0.5]), 10_000

    def log_ratio(x):
        return x @ mean - mean @ mean / 2

    def with_one(x):
        return np.column_stack([np.ones(len(x)), x])

    source, x = rng.normal(size=(sources, 2)), rng.normal(size=(1000, 2))
    target = mean + rng.normal(size=(images, 2))
    rows = np.concatenate([source, target])
    p = scipy.special.expit(log_ratio(rows) + math.log(images / sources))
    information = (with_one(rows).T * p * (1 - p)) @ with_one(rows)
    variance = np.sum((with_one(x) @ np.linalg.inv(information)) * with_one(x), axis=1)
    error = np.log(target_scores.density_ratio(x, source, target, 0)) - log_ratio(x)
    assert np.max(error**2 / variance) < scipy.stats.chi2.ppf(0.9999, 3)
    assert np.max(np.sqrt(variance)) < 0.2  # the log ratio itself goes from -3 to 3


def test_many_features_that_tell_nothing_leave_the_weights_at_one():
    """Which a classifier of one fixed strength does not, given as few images."""
    rng = np.random.default_rng(0)
    x, source, target = rng.normal(size=(3, 400, 128))
    weights = target_scores.density_ratio(x, source, target, 0)
    fixed = sklearn.linear_model.LogisticRegression(max_iter=1000)
    fixed.fit(np.concatenate([source, target]), np.repeat([0, 1], 400))
    overfitted = np.exp(fixed.decision_function(x))
    assert np.mean((weights - 1) ** 2) < 0.01 * np.mean((overfitted - 1) ** 2)


def test_without_a_shift_the_estimate_is_the_plain_accuracy():
    """To first order the two differ by c (b - m): b the slope that the classifier finds, m the mean
    of x. c = Cov(x, error) is E of the slope of Phi(x - 1), the density of N(1, 2) at 0. Without a
    shift b has the variance 1/M + 1/L, less for its regularisation, and m has 1/N."""
    rng = np.random.default_rng(0)
    images, draws = 2000, 20
    c = scipy.stats.norm.pdf(1 / math.sqrt(2)) / math.sqrt(2)
    spread = c * math.sqrt(3 / images)
    differences = []
    for seed in range(draws):
        x, wrong = draw(rng, images)
        source, target = rng.normal(size=(2, images, 1))
        found = target_scores.importance_weighted_accuracy(~wrong, x, source, target, seed)
        differences.append(found - np.mean(~wrong))
    assert np.any(differences)
    assert np.sum(np.square(differences)) < spread**2 * scipy.stats.chi2.ppf(0.9999, draws)


@pytest.mark.parametrize("mu", [0.5, 1.0])
def test_under_a_known_shift_the_estimate_is_the_targets_accuracy(mu):
    """The mean of the draws within four of its standard errors; each draw a quarter of the way."""
    rng = np.random.default_rng(0)
    images, found, plain = 2000, [], []
    for seed in range(10):
        x, wrong = draw(rng, images)
        source, target = rng.normal(size=(2, images, 1)) + np.array([0, mu])[:, None, None]
        found.append(target_scores.importance_weighted_accuracy(~wrong, x, source, target, seed))
        plain.append(np.mean(~wrong))
    wanted = 1 - target_error(mu)
    assert abs(np.mean(found) - wanted) < 4 * scipy.stats.sem(found)
    errors, errors_of_plain = np.abs(np.array([found, plain]) - wanted)
    assert (errors < errors_of_plain / 4).all()


def test_the_same_images_give_the_same_bits(rng):
    x, wrong = draw(rng, 300)
    source, target = rng.normal(size=(2, 300, 1))
    probabilities = softmax(rng.normal(size=(700, 5)))

    def scores():
        return (
            target_scores.entropy(probabilities),
            target_scores.soft_neighbourhood_density(probabilities),
            target_scores.importance_weighted_accuracy(~wrong, x, source, target, 3),
        )

    assert scores() == scores()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_diverged_score_below_all_others(which, bad, rng):
    features = rng.normal(size=(3, 20, 2))
    features[which, 4, 1] = bad
    found = target_scores.importance_weighted_accuracy(np.ones(20, bool), *features, 0)
    assert found == -math.inf


def test_a_weight_that_overflows_scores_below_all_others(rng):
    features = rng.normal(size=(3, 200, 1)) + np.array([0, 0, 2])[:, None, None]
    features[0, 7] = 1e30
    found = target_scores.importance_weighted_accuracy(np.ones(200, bool), *features, 0)
    assert found == -math.inf


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_image_is_too_few_to_weigh_by(which, rng, one_line):
    features = [rng.normal(size=(1 if i == which else 5, 2)) for i in range(3)]
    with one_line("at least two images of each"):
        target_scores.importance_weighted_accuracy(np.ones(len(features[0]), bool), *features, 0)


def test_two_images_of_each_are_enough(rng):
    features = rng.normal(size=(3, 2, 4))
    correct = np.array([True, False])
    assert math.isfinite(target_scores.importance_weighted_accuracy(correct, *features, 0))
