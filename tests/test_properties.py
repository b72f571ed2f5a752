"""What must hold for every input, looked for by Hypothesis; the same examples each time.

Elsewhere: that any interruption schedule gives the same final state, `train/test_resume.py`; that
real steps leave frozen parameters and statistics alone, `train/test_freeze.py`; that what is
exported comes back, `zoo/test_round_trips.py`.
"""

import collections
import contextlib
import dataclasses
import itertools
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jxfer import trees
from jxfer.data.loader import eval_batches, train_batches, train_rows
from jxfer.data.sources import Example, Source
from jxfer.data.transforms import CIFAR, AugmentConfig, Preprocessing
from jxfer.errors import UserError
from jxfer.train import parallel
from jxfer.train.evaluate import Evaluator
from jxfer.transfer import optimizer
from jxfer.transfer.labels import FROZEN, base, label_tree
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from jxfer.zoo.card import Card
from tests.hypotheses import examples

MOST = 30
PIXEL = Preprocessing(1, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


class Numbered(Source):
    """Images of one pixel; its value and the label of each are its place."""

    def __init__(self, count: int) -> None:
        self.class_names = tuple(map(str, range(count)))
        self._count = count

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self._count, dtype=np.int32)

    def name(self, index: int) -> str:
        return str(index)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        pixel = np.full((1, 1, 3), index, np.uint8)
        return Example(cv2.imencode(".png", pixel)[1].tobytes(), index, str(index))


@dataclasses.dataclass(frozen=True)
class Reader:
    """A network that reads the label off the pixel."""

    def apply(self, variables, inputs, after=None):
        return {"logits": -jnp.abs(inputs[:, 0, 0, :1] - jnp.arange(float(MOST))[None])}, {}


@contextlib.contextmanager
def pod(hosts, devices):
    """This process is one of so many, each with so many of the eight devices."""
    own = jax.local_devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: own)
        patch.setattr(jax, "local_device_count", lambda: devices)
        patch.setattr(jax, "device_count", lambda: hosts * devices)
        patch.setattr(jax, "process_count", lambda: hosts)
        yield


sizes = st.integers(1, MOST)
pods = st.sampled_from([(h, d) for h in range(1, 5) for d in range(1, 9) if h * d <= 8])
each = st.integers(1, 3)  # examples of a device's batch


@examples(10)
@given(sizes, pods, each)
def test_each_example_is_dealt_once_over_all_hosts_and_devices(size, shape, each):
    hosts, devices = shape
    source, counted, lengths = Numbered(size), [], set()
    for host in range(hosts):
        batch = hosts * devices * each
        batches = eval_batches(source, PIXEL, batch_size=batch, threads=1, host=host, hosts=hosts)
        with pod(hosts, devices):
            dealt = jax.device_get(list(parallel.shard(batches)))
        lengths.add(len(dealt))
        for batch in dealt:
            assert batch["mask"].shape == (devices, each)
            real = batch["mask"] > 0
            np.testing.assert_array_equal(batch["label"][real], batch["index"][real])
            counted += batch["index"][real].tolist()
    assert sorted(counted) == list(range(size))
    assert len(lengths) == 1


@pytest.mark.slow
@examples(15)
@given(sizes, st.integers(1, 8), st.integers(1, 20))
def test_an_evaluation_counts_each_example_once_on_any_devices(size, devices, batch_size):
    """Compiled for so many devices; that a class has one example tells who was counted."""
    with pod(1, devices):
        evaluator, variables = Evaluator(Reader(), PIXEL, batch_size), parallel.replicate({})
        result = evaluator.evaluate(variables, Numbered(size))
        rows = evaluator.probabilities(variables, Numbered(size))
    assert (result.examples, result.correct, result.macro_f1) == (size, size, 1)
    np.testing.assert_array_equal(rows.argmax(-1), np.arange(size))


@pytest.mark.slow
@examples(15)
@given(st.integers(1, 12), pods, each, st.integers(0, 2**31), st.integers(0, 20))
def test_each_epoch_draws_each_example_once_over_all_devices_wherever_it_resumes(
    size, shape, each, seed, start
):
    hosts, devices = shape
    batch = hosts * devices * each
    steps = -(-3 * size // batch)
    source = Numbered(size)

    def labels(host, start):
        """[steps, devices, each] of a host."""
        batches = train_batches(
            source,
            PIXEL,
            AugmentConfig(),
            batch_size=batch,
            seed=seed,
            start_step=start,
            threads=1,
            host=host,
            hosts=hosts,
        )
        with pod(hosts, devices):
            dealt = list(parallel.shard(itertools.islice(batches, steps)))
        return np.stack([np.asarray(found["label"]) for found in dealt])

    with pod(hosts, devices):
        places = np.asarray(
            jax.vmap(lambda _: parallel.example_indices(each), axis_name=parallel.AXIS)(
                jnp.zeros(hosts * devices)
            )
        )
    assert sorted(places.reshape(-1)) == list(range(batch))

    def drawn(start):
        """Each draw of the run in its place, whichever device has it."""
        found = np.empty((steps, batch), np.int32)
        found[:, places] = np.concatenate([labels(host, start) for host in range(hosts)], 1)
        return found

    whole = drawn(0).reshape(-1)
    for epoch in range(3):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))
    rows = train_rows(source, 1, batch_size=batch, seed=seed, start_step=start)
    np.testing.assert_array_equal(drawn(start), list(itertools.islice(rows, steps)))


PATHS = (
    "stem/conv/kernel",
    "stem/norm/scale",
    "stem/norm/bias",
    "stage1/block0/conv1/kernel",
    "stage1/block0/norm1/bias",
    "stage2/conv/kernel",
    "stage2/conv/bias",
    "head/linear/kernel",
    "head/linear/bias",
)
PARAMS = trees.unflatten(dict.fromkeys(PATHS, 0))
patterns = st.sampled_from(
    ["stem/.*", "stage1/.*", "stage[12]/.*", ".*/bias", ".*norm.*", ".*kernel", "head/", "head/("]
)
named = st.sampled_from(["frozen", "low_lr", "head", "low_lr/stage1", "low_lr/stage2", "cold"])
rules = st.tuples(
    st.lists(st.tuples(patterns, named), max_size=3, unique_by=lambda rule: rule[0]),
    st.sampled_from([[(".*", "head")], [(".*", "frozen")], []]),
).map(lambda drawn: drawn[0] + drawn[1])


def test_any_rule_list_covers_every_leaf_or_is_an_error():
    outcomes = collections.Counter()

    @examples(100)
    @given(rules)
    def check(rules):
        try:
            labels = trees.flatten(label_tree(PARAMS, rules))
        except UserError:
            outcomes["error"] += 1
            return
        outcomes["labels"] += 1
        deciding = {
            path: next(i for i, rule in enumerate(rules) if re.fullmatch(rule[0], path))
            for path in PATHS
        }
        assert labels == {path: rules[i][1] for path, i in deciding.items()}
        assert set(deciding.values()) == set(range(len(rules)))

    check()
    assert min(outcomes["error"], outcomes["labels"]) >= 10, outcomes


STAGES = ("stem", "stage1", "stage2")
strategies = st.one_of(
    st.sampled_from(
        ["full", "scratch", "linear_probe", "lp_ft", "gradual", "bn_only", "bitfit"]
    ).map(StrategyConfig),
    st.sampled_from(STAGES).map(lambda stage: StrategyConfig("partial", stage)),
    st.permutations(STAGES).map(lambda order: StrategyConfig("surgical", stages=tuple(order[:2]))),
)


@pytest.mark.slow
@examples(25)
@given(
    strategies,
    st.booleans(),
    st.sampled_from(["sgd", "adamw"]),
    st.floats(0, 0.1),
    st.integers(0, 2**31),
)
def test_no_strategy_moves_a_frozen_leaf(strategy, per_stage, rule, decay, seed):
    """Two updates of the whole tree, with weight decay on all leaves; the trainable ones move."""
    rng = np.random.default_rng(seed)
    random = {path: rng.uniform(0.5, 1, (2, 3)).astype(np.float32) for path in PATHS}
    for phase in phases(strategy, STAGES, with_norms=("stem", "stage1"), per_stage=per_stage):
        flat = trees.flatten(label_tree(trees.unflatten(random), phase.rules))
        config = OptimizerConfig(rule, lr=0.1, weight_decay=decay, decay_norm_and_bias=True)
        moving = {label for label in flat.values() if label != FROZEN}
        rates = {label: optax.constant_schedule(0.1) for label in moving}
        transform = optimizer.build(config, trees.unflatten(flat), rates)
        params = trees.unflatten({path: jnp.asarray(leaf) for path, leaf in random.items()})
        state = transform.init(params)
        for _ in range(2):
            updates, state = transform.update(params, state, params)
            params = optax.apply_updates(params, updates)
        for path, leaf in trees.flatten(params).items():
            assert trees.same_bits(leaf, random[path]) == (flat[path] == FROZEN), path
            assert base(flat[path]) in ("frozen", "low_lr", "head")


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda k: "/".join(k) + "/x")


@examples(30)
@given(st.dictionaries(paths, st.integers()), st.sampled_from("abc"))
def test_a_tree_is_what_its_parts_are(flat, letter):
    tree = trees.unflatten(flat)
    assert trees.flatten(tree) == dict(sorted(flat.items()))
    assert trees.merge(*trees.split(tree, lambda path: path.startswith(letter))) == (
        trees.unflatten(dict(sorted(flat.items())))
    )


texts = st.text(st.sampled_from('a/.<\n\x1b\x9b\u202e"\\\0é猫\U0001f431'), max_size=6)


@examples(30)
@given(
    texts,
    st.lists(texts, max_size=4, unique=True),
    st.dictionaries(texts, st.floats(allow_nan=False), max_size=2),
)
def test_a_card_reads_back_as_it_was(name, classes, config):
    card = Card(name, "resnet20", tuple(classes), CIFAR, notes=name, config=config)
    assert Card.from_json(card.to_json()) == card
