"""Mixed batches beside direct NumPy, and as the loader gives them."""

import itertools

import numpy as np
import pytest

from jxfer.data.loader import train_batches
from jxfer.data.mixing import mix
from jxfer.data.transforms import AugmentConfig, Preprocessing

BOTH = {"mixup": 0.4, "cutmix": 1.0}
LEVEL = 0.5 + 1e-3  # rounding to uint8, of a float32 product


@pytest.fixture(scope="module")
def batch():
    """Six images of noise, each in a range of levels of its own, labelled 0 to 5."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (6, 32, 24, 3), np.uint8)
    starts = np.arange(6, dtype=np.uint8)[:, None, None, None] * 42
    return {"image": noise + starts, "label": np.arange(6, dtype=np.int32)}


def draws(batch, number, *, mixup=0.0, cutmix=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [mix(batch, rng, mixup=mixup, cutmix=cutmix) for _ in range(number)]


def weight_of(mixed):
    [weight] = set(mixed["own_weight"].tolist())
    return weight


def is_pasted(batch, mixed):
    """Whether every pixel is that of the image or that of its partner."""
    own, partner = batch["image"], batch["image"][mixed["partner_label"]]
    return ((mixed["image"] == own) | (mixed["image"] == partner)).all()


def test_mixup_is_the_weighted_mean_of_two_images(batch):
    for mixed in draws(batch, 20, mixup=0.4):
        own, partner = (batch["image"][mixed[k]].astype(float) for k in ("label", "partner_label"))
        weight = weight_of(mixed)
        exact = weight * own + (1 - weight) * partner
        assert np.abs(mixed["image"] - exact).max() <= LEVEL


def rectangle(batch, mixed):
    """(top, bottom, left, right) of the pasted rectangle, the same one in all images."""
    pasted = (mixed["image"] != batch["image"]).all(-1)
    assert is_pasted(batch, mixed)
    assert (pasted == pasted[0]).all()
    rows, columns = np.flatnonzero(pasted[0].any(1)), np.flatnonzero(pasted[0].any(0))
    if not len(rows):
        return 0, 0, 0, 0
    box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert pasted[0].sum() == (box[1] - box[0]) * (box[3] - box[2])
    return box


def test_cutmix_pastes_a_rectangle_and_weighs_by_what_is_left(batch):
    for mixed in draws(batch, 50, cutmix=1.0):
        top, bottom, left, right = rectangle(batch, mixed)
        left_over = 1 - (bottom - top) * (right - left) / (32 * 24)
        assert weight_of(mixed) == np.float32(left_over)


def test_the_rectangle_has_a_uniform_centre_and_is_clipped_to_the_image(batch):
    """A huge alpha makes l = 1/2: 22 of 32 rows and 16 of 24 columns, before clipping."""
    boxes = np.array([rectangle(batch, mixed) for mixed in draws(batch, 600, cutmix=1e8)])
    tops, bottoms, lefts, rights = boxes.T
    assert ((bottoms - tops).max(), (rights - lefts).max()) == (22, 16)
    centres = np.where(tops > 0, tops + 11, bottoms - 11)
    whole = (tops > 0) | (bottoms < 32)
    assert set(centres[whole]) == set(range(32))
    np.testing.assert_allclose(np.bincount(centres[whole]), 600 / 32, atol=4 * (600 / 32) ** 0.5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_weight_of_mixup_follows_its_beta(batch, alpha):
    small = {"image": batch["image"][:2, :2, :2], "label": batch["label"][:2]}
    weights = np.array([weight_of(mixed) for mixed in draws(small, 4000, mixup=alpha)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.mean() == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
    assert weights.var() == pytest.approx(variance, rel=0.1)


def test_with_both_a_batch_takes_either_half_of_the_time(batch):
    pasted = sum(is_pasted(batch, mixed) for mixed in draws(batch, 400, **BOTH))
    assert abs(pasted - 200) < 4 * 10


@pytest.mark.parametrize("examples", [2, 3, 6])
def test_each_example_has_another_for_a_partner_and_each_other_in_time(batch, examples):
    part = {name: array[:examples] for name, array in batch.items()}
    partners = {(*mixed["partner_label"].tolist(),) for mixed in draws(part, 100, mixup=0.4)}
    for row in range(examples):
        assert {found[row] for found in partners} == set(range(examples)) - {row}


def test_a_batch_is_not_changed_in_place(batch):
    before = {name: array.copy() for name, array in batch.items()}
    draws(batch, 10, **BOTH)
    for name in before:
        np.testing.assert_array_equal(batch[name], before[name])


SMALL = Preprocessing(10)


def take(source, steps, *, batch_size=6, seed=0, mixup=0.4, cutmix=1.0, **options):
    augment = AugmentConfig(pad_crop=2, flip=True, mixup=mixup, cutmix=cutmix)
    batches = train_batches(source, SMALL, augment, batch_size=batch_size, seed=seed, **options)
    return list(itertools.islice(batches, steps))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_mixed_batches_have_the_promised_shapes(source):
    [batch] = take(source, 1)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes == {
        "image": ((6, 10, 10, 3), np.uint8),
        "label": ((6,), np.int32),
        "partner_label": ((6,), np.int32),
        "own_weight": ((6,), np.float32),
    }


def test_mixing_pairs_the_very_views_of_the_unmixed_batches(source):
    """Their order and augmentation stay; the partners stand a shift apart."""
    plain = take(source, 8, mixup=0.0, cutmix=0.0)
    mixed = take(source, 8, mixup=20.0, cutmix=0.0)  # weights near 1/2, so that partners show
    assert plain[0].keys() == {"image", "label"}
    for before, after in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(before["label"], after["label"])
        weight = weight_of(after)
        images = before["image"].astype(float)
        fits = [
            np.abs(weight * images + (1 - weight) * np.roll(images, shift, 0) - after["image"])
            for shift in range(1, 6)
        ]
        [shift] = [shift for shift, error in enumerate(fits, 1) if error.max() <= LEVEL]
        np.testing.assert_array_equal(np.roll(before["label"], shift), after["partner_label"])


def test_mixed_batches_are_a_function_of_the_seed(source):
    assert_equal(take(source, 8, seed=1), take(source, 8, seed=1, threads=5))
    weights = [[weight_of(batch) for batch in take(source, 8, seed=seed)] for seed in (1, 2)]
    assert len(set(weights[0])) > 4  # each step draws anew; areas of 10 px may coincide
    assert weights[0] != weights[1]


@pytest.mark.parametrize("step", [1, 5, 6, 17])  # an epoch is 5.5 batches
def test_resuming_mixes_as_an_undisturbed_run_does(source, step):
    assert_equal(take(source, 4, start_step=step), take(source, step + 4)[step:])


def test_hosts_mix_their_own_examples_by_one_draw(source):
    plain = take(source, 5, mixup=0.0, cutmix=0.0)
    parts = [take(source, 5, host=host, hosts=2) for host in range(2)]
    for step, whole in enumerate(plain):
        assert weight_of(parts[0][step]) == weight_of(parts[1][step])
        for host in range(2):
            np.testing.assert_array_equal(whole["label"][host::2], parts[host][step]["label"])
            partners = sorted(parts[host][step]["partner_label"])
            assert partners == sorted(whole["label"][host::2])


def test_a_batch_of_one_cannot_be_mixed(source, one_line):
    with one_line("batch size 2 gives each host one", "--batch-size"):
        take(source, 1, batch_size=2, hosts=2)
