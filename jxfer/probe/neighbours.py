"""k-nearest neighbours: the labels of the closest training features vote.

After `linear`, whose checks it shares, before `stages`.

Each of the k neighbours has one vote; at a tie of votes the lower label wins, as with
scikit-learn's `KNeighborsClassifier`. Of neighbours at one distance the earlier row counts as the
closer. Distances are float32.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jxfer.errors import UserError
from jxfer.probe import linear

Metric = Literal["cosine", "euclidean"]

NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Values of k that are tried, as far as there are training examples."""

_QUERIES = 256  # rows that are looked up at once
_ROWS = 8192  # training rows that they are compared with at once


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """How k was picked; arrays are [S], in the order of `neighbours`."""

    metric: Metric
    picked: int
    """index of the highest validation accuracy; at a tie the most neighbours"""
    neighbours: np.ndarray
    """values of k, from most to least"""
    val_correct: np.ndarray
    """validation examples classified correctly"""
    val_examples: int

    @property
    def k(self) -> int:
        """The picked one."""
        return int(self.neighbours[self.picked])


def fit(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    metric: Metric = "cosine",
    neighbours: Sequence[int] = NEIGHBOURS,
) -> Neighbours:
    """Validation picks how many neighbours vote.

    Args:
      train: (features float32 [N, D], labels int [N]).
      val: the same of other examples.
      class_names: K names, that labels are indices of.
      metric: cosine looks at directions only; euclidean at the features as they are.
      neighbours: values of k; those above N are left out.

    Raises:
      UserError: as `linear.fit`, or no value of k is from 1 to N.
    """
    linear.check(train, class_names)
    linear.check_finite(val[0], "validation")
    if not len(val[1]):
        raise UserError("a probe needs validation images to pick k: there are none")
    tried = sorted((k for k in neighbours if 1 <= k <= len(train[1])), reverse=True)
    if not tried:
        raise UserError(
            f"no number of neighbours among {', '.join(map(str, neighbours))} is from 1 to "
            f"{len(train[1])}, the number of training images"
        )
    nearest = nearest_rows(train[0], val[0], tried[0], metric)
    votes = train[1][nearest]
    correct = np.array([np.sum(vote(votes[:, :k], len(class_names)) == val[1]) for k in tried])
    return Neighbours(metric, int(correct.argmax()), np.array(tried), correct, len(val[1]))


def predict(
    train: tuple[np.ndarray, np.ndarray],
    features: np.ndarray,
    k: int,
    metric: Metric,
    classes: int,
) -> np.ndarray:
    """Labels [Q] of features [Q, D]."""
    return vote(train[1][nearest_rows(train[0], features, k, metric)], classes)


def vote(votes: np.ndarray, classes: int) -> np.ndarray:
    """The most frequent of the labels [Q, k] in each row, [Q]; at a tie the lowest."""
    counts = np.zeros((len(votes), classes), np.int64)
    np.add.at(counts, (np.arange(len(votes))[:, None], votes), 1)
    return counts.argmax(axis=1)


def nearest_rows(train: np.ndarray, queries: np.ndarray, k: int, metric: Metric) -> np.ndarray:
    """The k nearest of the training rows [N, D] to each query [Q, D], int [Q, k], nearest first.

    Memory: one more copy of the features, and 256 x 8192 distances however many rows there are.
    """
    assert 1 <= k <= len(train)
    if metric == "cosine":
        train, queries = _directions(train), _directions(queries)
        squares = np.zeros(len(train), np.float32)
    else:  # shifted by one vector, which no distance sees; the squares below keep more digits
        centre = train.mean(axis=0)
        train, queries = train - centre, queries - centre
        squares = np.square(train).sum(axis=1)
    rows = min(_ROWS, len(train))
    blocks = -(-len(train) // rows)
    more = blocks * rows - len(train)
    known = jnp.asarray(np.pad(train, ((0, more), (0, 0))).reshape(blocks, rows, -1), jnp.float32)
    far = np.pad(squares, (0, more), constant_values=np.inf)
    offsets = jnp.asarray(far.reshape(blocks, rows), jnp.float32)
    found = np.empty((len(queries), k), np.int32)
    for start in range(0, len(queries), _QUERIES):
        block = queries[start : start + _QUERIES]
        whole = np.zeros((_QUERIES, queries.shape[1]), np.float32)
        whole[: len(block)] = block
        nearest = np.asarray(_nearest(known, offsets, whole, k=k))
        found[start : start + len(block)] = nearest[: len(block)]
    return found


@functools.partial(jax.jit, static_argnames="k")
def _nearest(train: jax.Array, offsets: jax.Array, queries: jax.Array, *, k: int) -> jax.Array:
    """Rows [Q, k] of train [blocks, rows, D] where offset - 2 * product is least."""
    _, rows, _ = train.shape

    def merge(best: tuple, block: tuple) -> tuple[tuple, None]:
        index, features, offset = block
        numbers = index * rows + jnp.arange(rows)
        products = jnp.matmul(queries, features.T, precision="highest")
        closeness = jnp.concatenate([best[0], 2 * products - offset[None]], axis=1)
        numbers = jnp.broadcast_to(numbers[None], (len(queries), rows))
        numbers = jnp.concatenate([best[1], numbers], axis=1)
        top, places = jax.lax.top_k(closeness, k)  # of equals the first, which is the earlier row
        return (top, jnp.take_along_axis(numbers, places, axis=1)), None

    shape = len(queries), k
    none = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    (_, found), _ = jax.lax.scan(merge, none, (jnp.arange(len(train)), train, offsets))
    return found


def _directions(features: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
