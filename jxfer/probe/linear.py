"""Linear probes: softmax regression and linear SVM on features, over a path of strengths.

After `solver`, before `stages`. The protocol is that of Kornblith, Shlens and Le, "Do Better
ImageNet Models Transfer Better?" (CVPR 2019), appendix: multinomial logistic regression by L-BFGS,
an L2 penalty from 45 values spaced evenly on a log scale from 1e-6 to 1e5, every minimum the start
of the next, the validation split picks. What we do besides: the features are standardised by the
mean and standard deviation of the training examples (a constant feature is left out), and the
penalty is on the kernel for these; the loss is the mean over the examples, so that a strength means
the same for 40 images and for 40 000; and what is picked is the probe that was fitted to the
training examples, without another fit to training and validation examples together.

In scikit-learn's terms, on the same standardised features and with N training examples of weight 1,
a strength is that of

- `LogisticRegression(C=1 / (N * strength))` for three classes or more. For two classes
  scikit-learn fits one vector and we fit two, which are opposite: `C=2 / (N * strength)`.
- `LinearSVC(C=1 / (N * strength))`, its penalised intercept included; our objective is theirs,
  summed over the classes, divided by N C. For two classes we fit both sides, so it is twice theirs.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jxfer.errors import UserError
from jxfer.probe import solver
from jxfer.probe.objective import Kind
from jxfer.probe.solver import Examples

STRENGTHS: tuple[float, ...] = tuple(np.logspace(5, -6, 45).tolist())
"""From strong to weak."""

TOLERANCE = 1e-7
MAX_ITERATIONS = 1000

_ROWS = 64  # numbers of rows are rounded up to multiples, so that fewer programs are compiled


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier: ((features - mean) * inverse_std) @ kernel + bias."""

    kernel: np.ndarray
    """float32 [D, K]"""
    bias: np.ndarray
    """float32 [K]"""
    mean: np.ndarray
    """float32 [D]"""
    inverse_std: np.ndarray
    """float32 [D], 0 for a feature that was constant in training"""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, K], or the SVM's decision values."""
        return ((features - self.mean) * self.inverse_std) @ self.kernel + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Labels [N]; at a tie the lower one."""
        return self.logits(features).argmax(axis=1)


@dataclasses.dataclass(frozen=True)
class RegularisationPath:
    """A probe, and how it was picked; arrays are [S], in the order of the strengths."""

    probe: LinearProbe
    """at the picked strength"""
    picked: int
    """index of the highest validation accuracy; at a tie the strongest regularisation"""
    strengths: np.ndarray
    objective: np.ndarray
    """at the minimum over the training examples"""
    val_correct: np.ndarray
    """validation examples classified correctly; over all folds in cross-validation"""
    val_examples: int
    iterations: np.ndarray
    """of L-BFGS"""
    converged: np.ndarray
    """False where rounding or the limit of iterations came before the tolerance"""

    @property
    def strength(self) -> float:
        """The picked one."""
        return float(self.strengths[self.picked])


def fit(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    kind: Kind = "softmax",
    *,
    weights: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> RegularisationPath:
    """Fits the whole path in one compiled call; validation picks the strength.

    Args:
      train: (features float32 [N, D], labels int [N]).
      val: the same of other examples.
      class_names: K names, that labels are indices of.
      kind: softmax regression, or linear SVMs with squared hinge, one against rest.
      weights: float32 [N] of the training examples, 1 unless given; those of weight 0 drop out.
      strengths: of the penalty, positive, from strong to weak.
      tolerance: relative distance of the objective to its minimum, as the scaled gradient tells.
      max_iterations: of L-BFGS, per strength.

    Raises:
      UserError: there are fewer than two classes, a class has no training example, a split is
        empty, or a feature is not finite or spreads too far for float32.
      ValueError: there is no strength, or they are not as above.
    """
    _check_strengths(strengths)
    weights = np.ones(len(train[1]), np.float32) if weights is None else weights
    check(train, class_names, used=weights > 0)
    check_finite(val[0], "validation")
    if not len(val[1]):
        raise UserError("a probe needs validation images to pick its strength: there are none")
    solution = solver.solve_path(
        _padded(*train, weights),
        _padded(*val, np.ones(len(val[1]), np.float32)),
        np.asarray(strengths, np.float32),
        np.int32(-1),
        np.float32(tolerance),
        np.int32(max_iterations),
        kind=kind,
        classes=len(class_names),
    )
    return _path(solution, strengths, np.asarray(solution.correct), len(val[1]))


def cross_validate(
    train: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    kind: Kind = "softmax",
    *,
    folds: int = 5,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> RegularisationPath:
    """As `fit`, for few examples: folds of the training examples pick, then all are fitted.

    The folds are stratified: their sizes differ by at most one, and so does the number of a class.
    Each leaves its part out by weights of 0, so that all run one compiled program.

    Args:
      folds: F, at least 2.
      seed: of the assignment to folds.

    Raises:
      UserError: as `fit`; or a class has one example only.
      ValueError: as `fit`.
    """
    _check_strengths(strengths)
    features, labels = train
    check(train, class_names)
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        raise UserError(
            f"class {class_names[int(counts.argmin())]} has one training image: cross-validation "
            "needs at least 2 of each"
        )
    fold = stratified_folds(labels, folds, seed)

    def solve(kept: np.ndarray, pick: int) -> solver.Solution:
        return solver.solve_path(
            _padded(features, labels, kept.astype(np.float32)),
            _padded(features, labels, (~kept).astype(np.float32)),
            np.asarray(strengths, np.float32),
            np.int32(pick),
            np.float32(tolerance),
            np.int32(max_iterations),
            kind=kind,
            classes=len(class_names),
        )

    correct = sum(np.asarray(solve(fold != i, -1).correct) for i in range(folds))
    picked = int(np.argmax(correct))  # the first, which is the strongest
    return _path(solve(fold >= 0, picked), strengths, np.asarray(correct), len(labels))


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each example, int [N]: dealt in turn to the shuffled examples, class by class."""
    assert folds >= 2
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[by_class] = np.arange(len(labels)) % folds
    return fold


def check(
    train: tuple[np.ndarray, np.ndarray], class_names: Sequence[str], used: np.ndarray | None = None
) -> None:
    """Raises UserError where no classifier can be fitted; see `fit`."""
    features, labels = train
    labels = labels if used is None else labels[used]
    if len(class_names) < 2:
        raise UserError(
            f"the data has {len(class_names)} class ({', '.join(class_names)}): a probe needs at "
            "least 2"
        )
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if missing.size:
        more = f" and {missing.size - 1} more" if missing.size > 1 else ""
        raise UserError(
            f"class {class_names[missing[0]]}{more} has no training image: add some, or remove the "
            "class"
        )
    check_finite(features, "training")


def check_finite(features: np.ndarray, split: str) -> None:
    """Raises UserError naming the first row that holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise UserError(
            f"the features of {bad.size} {split} images are not finite, the first of image "
            f"{bad[0]}: check the weights"
        )


def _check_strengths(strengths: Sequence[float]) -> None:
    values = np.asarray(strengths, np.float32)
    if (
        not values.size
        or not (np.isfinite(values) & (values > 0)).all()
        or (np.diff(values) > 0).any()
    ):
        raise ValueError(f"strengths must be positive, from strong to weak: {list(strengths)}")


def _padded(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Examples:
    """With rows of weight 0 up to the next multiple of `_ROWS`."""
    more = -len(labels) % _ROWS
    return Examples(
        jnp.asarray(np.pad(features, ((0, more), (0, 0))), jnp.float32),
        jnp.asarray(np.pad(labels, (0, more)), jnp.int32),
        jnp.asarray(np.pad(weights, (0, more)), jnp.float32),
    )


def _path(
    solution: solver.Solution, strengths: Sequence[float], correct: np.ndarray, examples: int
) -> RegularisationPath:
    moments = np.isfinite(solution.mean) & np.isfinite(solution.inverse_std)
    if not moments.all():
        raise UserError(
            f"training feature {int(moments.argmin())} spreads too far, or too little, for "
            "float32: check the weights"
        )
    return RegularisationPath(
        LinearProbe(
            np.asarray(solution.kernel),
            np.asarray(solution.bias),
            np.asarray(solution.mean),
            np.asarray(solution.inverse_std),
        ),
        int(solution.picked),
        np.asarray(strengths, np.float64),
        np.asarray(solution.objective),
        correct.astype(np.int64),
        examples,
        np.asarray(solution.iterations),
        np.asarray(solution.converged),
    )
