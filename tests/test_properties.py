"""What must hold for every input, looked for by Hypothesis; the same examples each time.

That any interruption schedule gives the same final state is in `train/test_resume.py`.
"""

import collections
import itertools
import re

import cv2
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
from jxfer.transfer import optimizer
from jxfer.transfer.labels import FROZEN, base, label_tree
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig, phases
from jxfer.zoo.card import Card
from tests.hypotheses import examples

ONE_PIXEL = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()


class Numbered(Source):
    """Images of one pixel; the label of each is its place."""

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
        return Example(ONE_PIXEL, index, str(index))


sizes = st.integers(1, 30)
hosts_and_batches = st.tuples(st.integers(1, 4), st.integers(1, 5))


@examples(8)
@given(sizes, hosts_and_batches)
def test_an_evaluation_counts_each_example_once_over_all_hosts(size, shape):
    hosts, per_host = shape
    source, counted, lengths = Numbered(size), [], set()
    for host in range(hosts):
        batches = list(
            eval_batches(
                source,
                Preprocessing(1),
                batch_size=hosts * per_host,
                threads=1,
                host=host,
                hosts=hosts,
            )
        )
        lengths.add(len(batches))
        for batch in batches:
            assert batch["mask"].shape == (per_host,)
            real = batch["mask"] > 0
            np.testing.assert_array_equal(batch["label"][real], batch["index"][real])
            counted += batch["index"][real].tolist()
    assert sorted(counted) == list(range(size))
    assert len(lengths) == 1


@pytest.mark.slow
@examples(15)
@given(st.integers(1, 12), hosts_and_batches, st.integers(0, 2**31), st.integers(0, 20))
def test_each_epoch_draws_each_example_once_over_all_hosts_wherever_it_resumes(
    size, shape, seed, start
):
    hosts, per_host = shape
    batch = hosts * per_host
    steps = -(-3 * size // batch)
    source = Numbered(size)

    def labels(host, of, start):
        batches = train_batches(
            source,
            Preprocessing(1),
            AugmentConfig(),
            batch_size=batch,
            seed=seed,
            start_step=start,
            threads=1,
            host=host,
            hosts=of,
        )
        return [found["label"] for found in itertools.islice(batches, steps)]

    by_host = [labels(host, hosts, 0) for host in range(hosts)]
    # Draw k of the run is row k // hosts of host k % hosts.
    drawn = np.stack([np.concatenate(rows) for rows in by_host], 1).reshape(-1)
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    rows = train_rows(source, 1, batch_size=batch, seed=seed, start_step=start)
    resumed = np.stack([np.concatenate(labels(host, hosts, start)) for host in range(hosts)], 1)
    np.testing.assert_array_equal(
        resumed.reshape(-1), np.concatenate(list(itertools.islice(rows, steps)))
    )


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
