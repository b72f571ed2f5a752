"""Linear probes: scikit-learn on the same features, and what padding, ties and extremes do.

Well conditioned, where objectives agree to 1e-4 or better, is a strength of at least 1e-4 on
standardised features. Below, scikit-learn with its own tolerance stops early.
"""

import warnings

import numpy as np
import pytest
import scipy.special
import sklearn.datasets
import sklearn.exceptions
import sklearn.linear_model
import sklearn.svm

from jxfer.probe import linear, solver

WELL_CONDITIONED = [s for s in linear.STRENGTHS if 0.99e-4 < s < 10.1]
"""10 down to 1e-4, 4 a decade."""
CHECKED = range(0, len(WELL_CONDITIONED), 4)


@pytest.fixture(scope="module")
def digits():
    """(train, val, test), of 1797 images of 10 digits; three of the 64 pixels are constant."""
    features, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = features[order].astype(np.float32), labels[order]
    return [(features[rows], labels[rows]) for rows in np.split(np.arange(1797), [600, 900])]


NAMES = tuple("0123456789")


def standardised(features, train):
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    return np.where(std > 0, (features - mean) / np.where(std > 0, std, 1), 0)


def objective(kind, kernel, bias, features, labels, strength, weights=None):
    """In float64, of what `linear` documents."""
    kernel, bias = kernel.astype(np.float64), bias.astype(np.float64)
    logits = features @ kernel + bias
    if kind == "softmax":
        losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        return np.average(losses, weights=weights) + strength / 2 * (kernel**2).sum()
    sides = 2 * (labels[:, None] == np.arange(len(bias))) - 1
    losses = (np.maximum(0, 1 - sides * logits) ** 2).sum(axis=1)
    norm = (kernel**2).sum() + (bias**2).sum()
    return np.average(losses, weights=weights) + strength / 2 * norm


def sklearn_fit(kind, features, labels, strength):
    c = 1 / (len(labels) * strength)
    if kind == "softmax":
        model = sklearn.linear_model.LogisticRegression(
            C=c, solver="newton-cg", tol=1e-8, max_iter=1000
        )
    else:
        model = sklearn.svm.LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10000)
    with warnings.catch_warnings():  # its line search may stop at float64's last digits
        warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
        return model.fit(features, labels)


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_objective_and_accuracy_are_scikit_learns(digits, kind):
    train, val, test = digits
    path = linear.fit(train, val, NAMES, kind, strengths=WELL_CONDITIONED)
    assert path.converged.all()
    inputs = standardised(train[0], train[0])
    assert path.picked == path.val_correct.argmax()
    for i in sorted({*CHECKED, path.picked}):
        strength = WELL_CONDITIONED[i]
        theirs = sklearn_fit(kind, inputs, train[1], strength)
        expected = objective(kind, theirs.coef_.T, theirs.intercept_, inputs, train[1], strength)
        assert path.objective[i] == pytest.approx(expected, rel=1e-4)
        val_accuracy = theirs.score(standardised(val[0], train[0]), val[1])
        assert path.val_correct[i] / 300 == pytest.approx(val_accuracy, abs=0.005)
        if i == path.picked:
            accuracy = theirs.score(standardised(test[0], train[0]), test[1])
            ours = np.mean(path.probe.predict(test[0]) == test[1])
            assert ours == pytest.approx(accuracy, abs=0.005)


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_the_reported_objective_is_that_of_the_returned_probe(digits, kind):
    train, val, _ = digits
    path = linear.fit(train, val, NAMES, kind, strengths=WELL_CONDITIONED)
    inputs = (train[0] - path.probe.mean) * path.probe.inverse_std
    value = objective(kind, path.probe.kernel, path.probe.bias, inputs, train[1], path.strength)
    assert path.objective[path.picked] == pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def two_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    return (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32), labels


def test_two_classes_are_scikit_learns_at_twice_c(two_classes):
    features, labels = two_classes
    path = linear.fit(two_classes, two_classes, ("ants", "bees"))
    inputs = standardised(features, features)
    model = sklearn.linear_model.LogisticRegression(C=2 / (60 * path.strength), tol=1e-10)
    model.fit(inputs, labels)
    kernel, bias = path.probe.kernel, path.probe.bias
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], model.coef_[0], rtol=2e-3, atol=2e-4)
    assert bias[1] - bias[0] == pytest.approx(model.intercept_[0], abs=1e-3)


def test_a_tie_goes_to_the_strongest_regularisation(two_classes):
    labels = two_classes[1]
    features = np.where(labels, 1, -1)[:, None] * np.ones((1, 5), np.float32)
    path = linear.fit((features, labels), (features, labels), ("ants", "bees"))
    assert (path.val_correct == 60).sum() > 10
    assert path.picked == path.val_correct.argmax()


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_fewer_examples_than_features(kind):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = (rng.normal(size=(40, 200)) + rng.normal(size=(4, 200))[labels]).astype(np.float32)
    split = features, labels
    path = linear.fit(split, split, "abcd", kind, strengths=(1.0, 0.01))
    inputs = standardised(features, features)
    for strength, found in zip(path.strengths, path.objective, strict=True):
        theirs = sklearn_fit(kind, inputs, labels, strength)
        expected = objective(kind, theirs.coef_.T, theirs.intercept_, inputs, labels, strength)
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_rows_of_weight_0_drop_out_and_a_row_of_weight_2_is_two(digits, kind):
    (features, labels), val, _ = digits
    chosen = np.append(np.delete(np.arange(600), [3, 50]), [7, 8])
    plain = linear.fit(
        (features[chosen], labels[chosen]), val, NAMES, kind, strengths=WELL_CONDITIONED
    )
    weights = np.ones(600, np.float32)
    weights[[3, 50]], weights[[7, 8]] = 0, 2
    changed = features.copy()
    changed[[3, 50]] = 1e4
    weighted = linear.fit(
        (changed, labels), val, NAMES, kind, weights=weights, strengths=WELL_CONDITIONED
    )
    np.testing.assert_allclose(weighted.objective, plain.objective, rtol=1e-4)
    np.testing.assert_allclose(weighted.objective[:9], plain.objective[:9], rtol=2e-6)
    np.testing.assert_allclose(weighted.probe.mean, plain.probe.mean, atol=1e-4)
    np.testing.assert_allclose(
        weighted.probe.inverse_std, plain.probe.inverse_std, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_a_warm_start_ends_where_a_cold_one_does(digits, kind):
    train, val, _ = digits
    path = linear.fit(train, val, NAMES, kind, strengths=WELL_CONDITIONED)
    strength = WELL_CONDITIONED[CHECKED[-2]]
    cold = linear.fit(train, val, NAMES, kind, strengths=[strength] * len(WELL_CONDITIONED))
    assert cold.iterations[0] > path.iterations[CHECKED[-2]]
    assert path.objective[CHECKED[-2]] == pytest.approx(cold.objective[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["softmax", pytest.param("svm", marks=pytest.mark.slow)])
def test_the_whole_path_is_finite_and_one_program(digits, kind):
    train, val, _ = digits
    before = solver.solve_path._cache_size()
    for rows in (599, 600):  # the same number, rounded up
        path = linear.fit((train[0][:rows], train[1][:rows]), val, NAMES, kind)
    assert solver.solve_path._cache_size() == before + 1
    assert path.strengths.shape == path.objective.shape == path.iterations.shape == (45,)
    assert path.strengths[0] == 1e5
    assert path.strengths[-1] == pytest.approx(1e-6)
    assert np.isfinite(path.objective).all()
    assert (np.diff(path.objective) < 1e-6).all()  # of one function, less and less of it penalised
    assert path.converged.all()
    assert path.objective.dtype == path.probe.kernel.dtype == np.float32


def test_an_unfinished_minimum_is_reported(digits):
    train, val, _ = digits
    few = int(linear.fit(train, val, NAMES, strengths=WELL_CONDITIONED).iterations[0])
    path = linear.fit(train, val, NAMES, strengths=WELL_CONDITIONED, max_iterations=few)
    assert path.converged[0]
    assert not path.converged[-1]
    assert path.iterations.max() == few


def test_folds_are_stratified_and_drawn_by_the_seed(digits):
    labels = digits[0][1]
    fold = linear.stratified_folds(labels, 4, seed=3)
    assert np.ptp(np.bincount(fold, minlength=4)) <= 1
    for label in range(10):
        assert np.ptp(np.bincount(fold[labels == label], minlength=4)) <= 1
    np.testing.assert_array_equal(linear.stratified_folds(labels, 4, seed=3), fold)
    assert (linear.stratified_folds(labels, 4, seed=4) != fold).any()


@pytest.mark.slow
def test_cross_validation_is_the_sum_of_its_folds_and_a_fit_of_all(digits):
    (features, labels), _, _ = digits
    train = features[:100], labels[:100]
    before = solver.solve_path._cache_size()
    path = linear.cross_validate(train, NAMES, folds=4, seed=3, strengths=WELL_CONDITIONED)
    assert solver.solve_path._cache_size() == before + 1
    fold = linear.stratified_folds(train[1], 4, 3)
    correct = np.zeros(len(WELL_CONDITIONED))
    for i in range(4):
        inside, outside = fold != i, fold == i
        kept, held_out = [(train[0][rows], train[1][rows]) for rows in (inside, outside)]
        correct += linear.fit(kept, held_out, NAMES, strengths=WELL_CONDITIONED).val_correct
    np.testing.assert_allclose(path.val_correct, correct, atol=1)  # one may be on the fence
    assert path.val_examples == 100
    assert path.picked == path.val_correct.argmax()
    whole = linear.fit(train, train, NAMES, strengths=[path.strength])
    assert path.objective[path.picked] == pytest.approx(whole.objective[0], rel=1e-4)
    np.testing.assert_allclose(path.probe.predict(features), whole.probe.predict(features))


def fit_constant_and(scale):
    """An SVM on a feature that is 1.1, whose mean float32 misses, and on scale or -scale."""
    signs = np.where(np.random.default_rng(0).random(3008) < 0.3, 1, -1).astype(np.float32)
    features = np.stack([np.full_like(signs, 1.1), signs * np.float32(scale)], axis=1)
    split = features, (signs > 0).astype(int)
    return signs, linear.fit(split, split, ("ants", "bees"), "svm", strengths=(1e-2,))


@pytest.mark.parametrize(
    "scale", [1, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1e-30, 1e20))]
)
def test_a_constant_feature_is_left_out_and_one_of_any_size_is_not(scale):
    signs, found = fit_constant_and(scale)
    assert found.probe.inverse_std[0] == 0
    assert found.probe.mean[0] == np.float32(1.1)
    assert (found.probe.kernel[0] == 0).all()
    assert found.probe.inverse_std[1] * scale == pytest.approx(1 / signs.std(), rel=1e-4)
    assert found.val_correct[0] == 3008


def test_a_feature_whose_range_leaves_float32_is_named(one_line):
    with one_line("training feature 1", "float32"):
        fit_constant_and(3e38)


@pytest.mark.parametrize(
    "strengths", [(), (1.0, 0.0), (1.0, -1.0), (0.1, 1.0), (np.inf, 1.0), (1.0, np.nan)]
)
def test_strengths_are_positive_and_from_strong_to_weak(strengths, two_classes):
    with pytest.raises(ValueError, match="from strong to weak"):
        linear.fit(two_classes, two_classes, ("ants", "bees"), strengths=strengths)
    with pytest.raises(ValueError, match="from strong to weak"):
        linear.cross_validate(two_classes, ("ants", "bees"), strengths=strengths)


def test_what_is_wrong_is_one_line(one_line):
    features = np.ones((3, 2), np.float32)
    labels = np.array([0, 1, 1])
    split = features, labels
    with one_line("1 class (ants)", "at least 2"):
        linear.fit((features, np.zeros(3, int)), split, ("ants",))
    with one_line("class bees and 1 more has no training image"):
        linear.fit((features, np.zeros(3, int)), split, ("ants", "bees", "cats"))
    with one_line("class ants has no training image"):
        linear.fit(split, split, ("ants", "bees"), weights=np.array([0, 1, 1], np.float32))
    with one_line("class ants has one training image"):
        linear.cross_validate(split, ("ants", "bees"))
    with one_line("no", "validation images"):
        linear.fit(split, (features[:0], labels[:0]), ("ants", "bees"))
    broken = np.array([[1, 1], [np.nan, 1], [np.inf, 1]], np.float32)
    with one_line("2 training images", "image 1"):
        linear.fit((broken, labels), split, ("ants", "bees"))
    with one_line("2 validation images"):
        linear.fit(split, (broken, labels), ("ants", "bees"))
