"""Each term beside loops in NumPy, in float64, and its gradient beside a slope or a closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxfer.losses import adaptation
from jxfer.losses.adaptation import AdaptConfig


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def batches(rng, sizes=(5, 7), channels=4):
    """A source, and a target of another mean and spread."""
    source = rng.normal(size=(sizes[0], channels))
    target = rng.normal(1.0, 2.0, size=(sizes[1], channels))
    return source.astype(np.float32), target.astype(np.float32)


def slope(function, x, way):
    """d/dt function(x + t way) at 0, by central differences in float64."""
    x, way, step = np.float64(x), np.float64(way), 1e-5
    return (function(x + step * way) - function(x - step * way)) / (2 * step)


def test_coral_compares_the_covariances(rng):
    source, target = batches(rng)
    difference = np.cov(np.float64(source), rowvar=False) - np.cov(np.float64(target), rowvar=False)
    wanted = sum(difference[i, j] ** 2 for i in range(4) for j in range(4)) / (4 * 4**2)
    assert adaptation.coral(source, target) == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_of_coral_is_the_papers(rng):
    """Eq. 4 and 5: +-1 / (d^2 (n - 1)) (D - mean) (C_S - C_T)."""
    source, target = batches(rng)
    difference = np.cov(np.float64(source), rowvar=False) - np.cov(np.float64(target), rowvar=False)
    found = jax.grad(adaptation.coral, argnums=(0, 1))(source, target)
    for slopes, features, sign in zip(found, (source, target), (1, -1), strict=True):
        wanted = sign * (features - features.mean(0)) @ difference / (16 * (len(features) - 1))
        np.testing.assert_allclose(slopes, wanted, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_coral_is_its_slope(rng):
    source, target = batches(rng)
    found = jax.grad(adaptation.coral)(source, target)
    way = rng.normal(size=source.shape)

    def value(x):
        difference = np.cov(x, rowvar=False) - np.cov(np.float64(target), rowvar=False)
        return (difference**2).sum() / (4 * 4**2)

    assert (found * way).sum() == pytest.approx(slope(value, source, way), rel=1e-4)


def test_coral_does_not_see_the_means(rng):
    source, target = (np.round(x * 64) / 64 for x in batches(rng))  # so that the shift is exact
    shifted = adaptation.coral(source + 512, target - 256)
    assert shifted == pytest.approx(float(adaptation.coral(source, target)), rel=1e-4)


def test_coral_of_the_same_batch_in_another_order_is_zero(rng):
    source, _ = batches(rng)
    assert adaptation.coral(source, source[::-1]) == pytest.approx(0, abs=1e-10)


def mean_distance(source, target):
    both = np.concatenate([source, target]).astype(np.float64)
    return np.mean([((x - y) ** 2).sum() for x, y in itertools.permutations(both, 2)])


def mmd(source, target, mean):
    """The U-statistic, pair by pair."""

    def kernel(x, y):
        distance = ((np.float64(x) - y) ** 2).sum()
        return np.mean([np.exp(-distance / (factor * mean)) for factor in (0.25, 0.5, 1, 2, 4)])

    within = [
        np.mean([kernel(x, y) for x, y in itertools.permutations(batch, 2)])
        for batch in (source, target)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in source for y in target])


@pytest.mark.parametrize("sizes", [(5, 7), (6, 6), (2, 3)])
def test_mmd_is_the_statistic_written_pair_by_pair(sizes, rng):
    source, target = batches(rng, sizes)
    wanted = mmd(source, target, mean_distance(source, target))
    assert adaptation.mmd(source, target) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_gradient_of_mmd_is_its_slope_at_a_fixed_bandwidth(rng):
    source, target = batches(rng)
    mean = mean_distance(source, target)
    found = jax.grad(adaptation.mmd, argnums=(0, 1))(source, target)
    for axis, features in enumerate((source, target)):
        way = rng.normal(size=features.shape)

        def value(x, axis=axis):
            return mmd(*((x, target) if axis == 0 else (source, x)), mean)

        assert (found[axis] * way).sum() == pytest.approx(slope(value, features, way), rel=1e-4)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_mmd_is_unbiased(size, rng):
    """Its mean over all ways to split the same examples is 0, whatever they are."""
    both = np.concatenate(batches(rng, (3, 4)))
    found = []
    for chosen in itertools.combinations(range(7), size):
        rest = [i for i in range(7) if i not in chosen]
        found.append(float(adaptation.mmd(both[list(chosen)], both[rest])))
    assert np.ptp(found) > 0.05
    assert np.mean(found) == pytest.approx(0, abs=1e-6)


def test_mmd_does_not_see_where_both_batches_lie(rng):
    source, target = (np.round(x * 64) / 64 for x in batches(rng))
    moved = adaptation.mmd(source + 4096, target + 4096)
    assert moved == pytest.approx(float(adaptation.mmd(source, target)), rel=1e-4)


def test_mmd_and_its_gradient_are_zero_where_all_examples_are_the_same():
    same = jnp.full((4, 3), 0.1)
    value, slopes = jax.value_and_grad(adaptation.mmd, argnums=(0, 1))(same, same[:3])
    assert value == 0
    for found in slopes:
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize(("method", "function"), [("coral", "coral"), ("dan", "mmd")])
def test_one_example_of_a_domain_is_an_error_while_tracing(method, function, sizes, one_line):
    shapes = [jax.ShapeDtypeStruct((size, 3), jnp.float32) for size in sizes]
    counts = f"not {sizes[0]} and {sizes[1]}"
    with one_line(f"--adapt.method {method}", "at least 2 images", counts):
        jax.eval_shape(getattr(adaptation, function), *shapes)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def confusion_weights(logits, temperature):
    p = softmax(np.float64(logits) / temperature)
    weights = 1 + np.exp((p * np.log(p)).sum(-1))
    return len(p) * weights / weights.sum()


def mcc(logits, temperature, weights):
    """Equation by equation."""
    p = softmax(np.float64(logits) / temperature)
    examples, classes = p.shape
    correlation = np.zeros((classes, classes))
    for i, j, k in itertools.product(range(examples), range(classes), range(classes)):
        correlation[j, k] += weights[i] * p[i, j] * p[i, k]
    return sum(
        correlation[j, k] / correlation[j].sum()
        for j, k in itertools.permutations(range(classes), 2)
    ) / len(correlation)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_confusion_and_its_gradient_are_the_papers_at_fixed_weights(temperature, rng):
    logits, way = rng.normal(scale=3, size=(2, 6, 4)).astype(np.float32)
    weights = confusion_weights(logits, temperature)
    value, found = jax.value_and_grad(adaptation.mcc)(logits, temperature)
    assert value == pytest.approx(mcc(logits, temperature, weights), rel=1e-5)
    wanted = slope(lambda x: mcc(x, temperature, weights), logits, way)
    through_weights = slope(
        lambda x: mcc(x, temperature, confusion_weights(x, temperature)), logits, way
    )
    assert abs(through_weights - wanted) > 1e-3 * abs(wanted)  # so the next line tells them apart
    assert (found * way).sum() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_uniform_predictions_have_the_most_class_confusion(classes):
    """C_jk is B / K^2 everywhere, so a row has 1/K on its diagonal."""
    found = adaptation.mcc(jnp.zeros((8, classes)), 2.5)
    assert found == pytest.approx(1 - 1 / classes, rel=1e-6)


def test_sure_predictions_of_every_class_have_no_class_confusion():
    assert adaptation.mcc(1e4 * jnp.eye(3)[jnp.array([0, 1, 2, 0])], 2.5) == 0


def test_a_class_that_no_image_gets_is_confused_wholly():
    """Its row is all off the diagonal, in the limit of sure predictions."""
    sure = 1e4 * jnp.eye(3)[jnp.array([0, 1, 1])]
    value, found = jax.value_and_grad(adaptation.mcc)(sure, 2.5)
    assert value == pytest.approx(1 / 3, rel=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_terms_of_half_precision_features_are_float32(name, rng):
    source, target = (jnp.asarray(x, jnp.bfloat16) for x in batches(rng))
    term = getattr(adaptation, name)
    found = term(source, target)
    assert found.dtype == jnp.float32
    wanted = term(source.astype(jnp.float32), target.astype(jnp.float32))
    assert found == wanted


@pytest.mark.parametrize(
    ("method", "properties"),
    [
        ("source_only", (True, False, False)),
        ("adabn", (True, False, False)),
        ("coral", (True, True, False)),
        ("dan", (True, True, False)),
        ("dann", (True, True, True)),
        ("cdan", (True, True, True)),
        ("mcc", (True, True, False)),
    ],
)
def test_what_a_method_is(method, properties):
    config = AdaptConfig(method, target="digits")
    assert (config.acts, config.has_term, config.is_adversarial) == properties


def test_no_method_is_the_default():
    config = AdaptConfig()
    assert (config.acts, config.has_term, config.is_adversarial) == (False, False, False)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "jan"}, ("--adapt.method jan", "source_only, ", "cdan or mcc")),
        ({"select": "target"}, ("--adapt.select target", "source, ", "entropy or density")),
        ({"method": "dann"}, ("--adapt.method dann needs --adapt.target",)),
        ({"method": "source_only"}, ("--adapt.method source_only needs --adapt.target",)),
        ({"target": "digits"}, ("--adapt.target does nothing under --adapt.method none",)),
        ({"select": "entropy"}, ("--adapt.select does nothing under --adapt.method none",)),
        ({"partial": True}, ("--adapt.partial does nothing", "leave it out")),
        ({"weight": 2.0}, ("--adapt.weight does nothing", "leave it out")),
        (
            {"method": "adabn", "target": "digits", "weight": 0.0},
            ("--adapt.weight does nothing under --adapt.method adabn", "leave it out"),
        ),
        (
            {"method": "dann", "target": "digits", "temperature": 1.0},
            ("--adapt.temperature does nothing under --adapt.method dann", "leave it out"),
        ),
        ({"method": "dan", "target": "digits", "weight": -1.0}, ("weight -1", "at least 0")),
        ({"weight": float("nan")}, ("--adapt.weight nan", "at least 0")),
        ({"weight": float("inf")}, ("--adapt.weight inf", "at least 0")),
        (
            {"method": "mcc", "target": "digits", "temperature": 0.0},
            ("--adapt.temperature 0", "above 0"),
        ),
        ({"temperature": float("inf")}, ("--adapt.temperature inf", "above 0")),
    ],
)
def test_a_field_out_of_range_or_without_use_is_named(fields, words, one_line):
    with one_line(*words):
        AdaptConfig(**fields)
