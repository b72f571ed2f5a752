"""Linear probes: jxfer's path of 45 strengths beside scikit-learn's.

Command: `python scripts/bench_probe.py`
Prints seconds for the whole path and their ratio, medians of interleaved repetitions in one
process; above 1, jxfer is faster. Synthetic features, 512 of each example, after a ReLU and
standardised; a fifth as many validation examples, whose accuracy both sides find at each strength.
scikit-learn's side is `LogisticRegression` (lbfgs, warm_start) and `LinearSVC` (primal), each with
its own tolerance, on float32 and float64 features respectively, which is what they compute in; with
one BLAS thread and with all, since either may be the faster, and the ratio is to the faster.
jxfer's compilation, once for all data of one shape, is apart. `worse` is the largest excess of a
side's objective over the other's, relative, at strengths of at least 1e-4; scikit-learn's is
evaluated in float64. The last column counts the strengths at which jxfer did not meet its
tolerance.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import sklearn.linear_model
import sklearn.svm
import threadpoolctl
import tyro

from jxfer import text
from jxfer.probe import linear
from jxfer.probe.objective import Kind

Split = tuple[np.ndarray, np.ndarray]
FEATURES = 512
WELL_CONDITIONED = 0.99e-4


def main(
    sizes: tuple[int, ...] = (1000, 3000, 10000),
    classes: tuple[int, ...] = (10, 37),
    repetitions: int = 3,
    kinds: tuple[Kind, ...] = ("softmax", "svm"),
    max_iterations: int = 100,
) -> None:
    """Prints the table.

    Args:
      sizes: Numbers of training examples.
      classes: Numbers of classes.
      repetitions: Timed paths of each side, interleaved.
      kinds: Which probes.
      max_iterations: scikit-learn's limit per strength; for LinearSVC as well.
    """
    measured = ("sklearn, 1 thread, s", "all, s", "jxfer, s", "ratio", "compilation, s")
    checks = ("worse: sklearn", "worse: jxfer", "not converged")
    rows: list[tuple[str, ...]] = [("probe", "examples", "classes", *measured, *checks)]
    for kind in kinds:
        for size in sizes:
            for number in classes:
                rows.append(_compare(kind, size, number, repetitions, max_iterations))
                print(" ".join(rows[-1]), flush=True)  # it takes minutes
    print(text.table(rows))


def _compare(
    kind: Kind, size: int, classes: int, repetitions: int, max_iterations: int
) -> tuple[str, ...]:
    train, val = _data(size, classes)
    names = [str(label) for label in range(classes)]

    def theirs(threads: int | None) -> Any:
        with threadpoolctl.threadpool_limits(threads):
            return _sklearn_path(kind, train, val, max_iterations)

    sides: dict[str, Callable[[], Any]] = {
        "one": lambda: theirs(1),
        "all": lambda: theirs(None),
        "jxfer": lambda: linear.fit(train, val, names, kind),
    }
    start = time.perf_counter()
    path = linear.fit(train, val, names, kind)
    first = time.perf_counter() - start
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for _ in range(repetitions):
        for side, run in sides.items():
            start = time.perf_counter()
            results[side] = run()
            seconds[side].append(time.perf_counter() - start)
    one, many, ours = (statistics.median(seconds[side]) for side in sides)
    ratio = np.array(
        [
            _objective(kind, kernel, bias, train, strength) / value - 1
            for (kernel, bias), strength, value in zip(
                results["one"], path.strengths, path.objective, strict=True
            )
            if strength >= WELL_CONDITIONED
        ]
    )
    return (
        kind,
        str(size),
        str(classes),
        f"{one:.2f}",
        f"{many:.2f}",
        f"{ours:.2f}",
        f"{min(one, many) / ours:.1f}",
        f"{first - ours:.1f}",
        f"{max(0, ratio.max()):.1e}",
        f"{max(0, -ratio.min()):.1e}",
        f"{np.sum(~path.converged)} of {len(path.strengths)}",
    )


def _data(size: int, classes: int) -> tuple[Split, Split]:
    """(train, val): Gaussian classes in 64 dimensions, projected, with noise, after a ReLU."""
    rng = np.random.default_rng(0)
    rows = size + size // 5
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    centres = 0.55 * rng.normal(size=(classes, 64))
    latent = centres[labels] + rng.normal(size=(rows, 64))
    features = latent @ rng.normal(size=(64, FEATURES)) / 8
    features = np.maximum(0, features + 0.3 * rng.normal(size=features.shape))
    train = features[:size]
    standard = ((features - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)
    return (standard[:size], labels[:size]), (standard[size:], labels[size:])


def _sklearn_path(
    kind: Kind, train: Split, val: Split, max_iterations: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel [K, D], bias [K]) at each strength."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not converge at the weakest strengths
        if kind == "softmax":
            model = sklearn.linear_model.LogisticRegression(
                warm_start=True, max_iter=max_iterations
            )
            features = train[0]
        else:
            model = sklearn.svm.LinearSVC(dual=False, max_iter=max_iterations)
            features = train[0].astype(np.float64)
        for strength in linear.STRENGTHS:
            model.set_params(C=1 / (len(features) * strength)).fit(features, train[1])
            model.score(*val)
            found.append((model.coef_.copy(), model.intercept_.copy()))
    return found


def _objective(
    kind: Kind, kernel: np.ndarray, bias: np.ndarray, train: Split, strength: float
) -> float:
    """As `jxfer.probe.objective` has it, in float64."""
    kernel, bias = kernel.astype(np.float64), bias.astype(np.float64)
    features, labels = train
    logits = features @ kernel.T + bias
    if kind == "softmax":
        losses = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        return float(losses.mean() + strength / 2 * np.sum(kernel**2))
    sides = 2 * (labels[:, None] == np.arange(len(bias))) - 1
    losses = np.sum(np.maximum(0, 1 - sides * logits) ** 2, axis=1)
    return float(losses.mean() + strength / 2 * (np.sum(kernel**2) + np.sum(bias**2)))


if __name__ == "__main__":
    tyro.cli(main)
