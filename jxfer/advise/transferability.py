"""Transferability: how well features, or a source's predictions, tell the target's labels apart.

After `probe` in the flow. Each score is a closed expression, or a search in one variable, over
features that were extracted once: nothing is trained. All in NumPy float64 on the host, because the
arrays are small and the evidence sums thousands of logarithms. Higher is better for each of them.
"""

import numpy as np

from jxfer.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME: log of the maximum evidence of a Bayesian linear regression onto each class.

    With F the features, y the 0/1 indicator of a class, weights w ~ N(0, I / alpha) and noise of
    precision beta, the evidence is p(y) = N(y; 0, I / beta + F F' / alpha). LogME is the mean over
    classes of max over (alpha, beta) of log p(y) / N. There is no intercept, as in the paper.

    You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning"
    (ICML), algorithm 1. In the axes of F's singular vectors only t = alpha / beta is
    left to find (You et al. 2022, "Ranking and Tuning Pre-trained Models", JMLR). Their fixed point
    creeps where the features say little; here a grid over t and a golden-section search around its
    best point find the same maximum in a known number of steps.

    Where the labels are an exact linear function of fewer independent features than examples the
    evidence has no bound; t stays within 1e-12 to 1e12 times the largest squared singular value.

    Args:
      features: [N, D].
      labels: int [N]; classes that do not occur do not count.

    Raises:
      UserError: fewer than two classes occur, or a feature is not finite.
    """
    features, codes = _checked(features, labels)
    examples, norms = len(features), np.bincount(codes)  # norms [C]: y'y
    squares, projected = _projections(features, codes)
    squares = squares[:, None]
    outside = np.maximum(norms - projected.sum(0), np.finfo(float).eps * norms)
    scale = np.log(squares.max(initial=0) or 1.0)

    def evidence(log_t: np.ndarray) -> np.ndarray:
        """Log evidence [C] at t [C] and the best beta for it, N / (|Fm - y|^2 + t m'm)."""
        t = np.exp(log_t)
        error = (t / (t + squares) * projected).sum(0) + outside
        volume = np.log1p(squares / t).sum(0)
        return 0.5 * (examples * (np.log(examples / (2 * np.pi * error)) - 1) - volume)

    grid = scale + np.log(10) * np.linspace(-12, 12, 49)
    values = np.stack([evidence(np.full(len(norms), log_t)) for log_t in grid])  # [49, C]
    centre = np.clip(values.argmax(0), 1, len(grid) - 2)
    low, high = grid[centre - 1], grid[centre + 1]
    for _ in range(40):  # to 1e-8 of the bracket
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        rises = evidence(left) < evidence(right)
        low, high = np.where(rises, left, low), np.where(rises, high, right)
    return float(evidence((low + high) / 2).mean() / examples)


def leep(source_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """LEEP: mean log-likelihood of the labels under a predictor read off the source's head.

    With theta(x)_z the source's probability of its class z: P(y, z) is the mean over examples of
    [y_i = y] theta(x_i)_z (equation 1), P(y | z) = P(y, z) / P(z), and the score is the mean of
    log sum_z P(y_i | z) theta(x_i)_z (equation 2). At most 0, at least minus the labels' entropy.

    Nguyen et al. 2020, "LEEP: A New Measure to Evaluate Transferability of Learned
    Representations" (ICML).

    Args:
      source_probabilities: [N, Z], rows that add up to 1: softmax outputs, not logits.
      labels: int [N], of the target.

    Raises:
      ValueError: a row is no distribution.
      UserError: fewer than two classes occur, or a probability is not finite.
    """
    probabilities, codes = _checked(source_probabilities, labels)
    if probabilities.min() < 0 or np.abs(probabilities.sum(1) - 1).max() > 1e-3:
        raise ValueError("LEEP takes probabilities: each row must add up to 1")
    joint = np.eye(codes.max() + 1)[codes].T @ probabilities / len(codes)  # [C, Z]
    marginal = joint.sum(0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    return float(np.log((conditional[codes] * probabilities).sum(1)).mean())


def nce(source_labels: np.ndarray, labels: np.ndarray) -> float:
    """NCE: minus the entropy of the target's label given the source's, -H(Y | Z), in nats.

    The sum over y, z of P(y, z) log(P(y, z) / P(z)), from counts. At most 0, where the source's
    label determines the target's; at least -H(Y). Not symmetric: a source of many fine classes
    tells a coarse label, and not the other way round.

    Tran et al. 2019, "Transferability and Hardness of Supervised Classification Tasks" (ICCV).
    Their source labels are given; here they are what the source's head predicts, as in Nguyen et
    al. 2020.

    Args:
      source_labels: int [N]: Z, the source's predicted class of each target example.
      labels: int [N]: Y, the target's.

    Raises:
      UserError: fewer than two classes occur in `labels`.
    """
    source, codes = _checked(np.asarray(source_labels)[:, None], labels)
    rows = np.unique(source[:, 0], return_inverse=True)[1]
    counts = np.zeros((rows.max() + 1, codes.max() + 1))  # [Z, C]
    np.add.at(counts, (rows, codes), 1)
    present = counts > 0
    share = (counts / counts.sum(1, keepdims=True))[present]  # P(y | z)
    return float((counts[present] * np.log(share)).sum() / len(codes))


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score: tr(cov(f)^-1 cov(E[f | y])), the variance between classes in units of all variance.

    Between 0 and the smaller of D and classes - 1; the same for every invertible linear map of the
    features. The inverse is a pseudo-inverse: axes without variance, such as dead units, are left
    out. With as many features as examples it is classes - 1 whatever the features are; there
    `shrunk_h_score` still tells something.

    Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer
    Learning" (ICIP).

    Args:
      features: [N, D].
      labels: int [N].

    Raises:
      UserError: fewer than two classes occur, or a feature is not finite.
    """
    features, codes = _checked(features, labels)
    _, projected = _projections(features - features.mean(0), codes)
    return float((projected / np.bincount(codes)).sum())


def shrunk_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score with a shrunk covariance, for few examples: tr(S^-1 (1 - a) cov(E[f | y])).

    S = (1 - a) cov(f) + a tr(cov(f)) / D I, with the weight a of Ledoit & Wolf 2004, which the data
    set: near 0 for many examples, where this is `h_score`. It is the same under rotation and
    scaling of all features, no more under every linear map.

    Ibrahim et al. 2021, "Newer is not always better: Rethinking transferability metrics, their
    peculiarities, stability and performance".

    Args:
      features: [N, D].
      labels: int [N].

    Raises:
      UserError: fewer than two classes occur, or a feature is not finite.
    """
    features, codes = _checked(features, labels)
    centred = features - features.mean(0)
    squares, projected = _projections(centred, codes)
    if not len(squares):
        return 0.0
    examples, dimensions = features.shape
    variances = squares / examples
    between = variances * (projected / np.bincount(codes)).sum(1)
    # Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    spread = (variances**2).sum() - variances.sum() ** 2 / dimensions  # |S - tr(S) / D I|^2
    noise = ((centred**2).sum(1) ** 2).mean() - (variances**2).sum()  # mean of |x x' - S|^2
    weight = min(noise / examples / spread, 1.0) if spread > 0 else 1.0
    shrunk = (1 - weight) * variances + weight * variances.sum() / dimensions
    return float((1 - weight) * (between / shrunk).sum())


def _projections(rows: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the scores need of rows [N, D] and classes [N]: by axis of the rows' column space.

    From the smaller of the two products of the rows with themselves, many times faster than a
    singular value decomposition. An axis whose singular value is below 1e-6 of the largest holds
    only the rounding of float32 features, and is left out.

    Returns:
      Squared singular values [k], and (u_j . y_c)^2 [k, C] of the left singular vectors u_j with
      the 0/1 indicators y_c of the classes. Of centred rows, the sum over c of the latter, each
      over its class's count, is the share of the variance along axis j that lies between classes.
    """
    indicators = np.eye(codes.max() + 1)[codes]
    tall = len(rows) > rows.shape[1]
    values, axes = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = values > 1e-12 * values[-1]
    values, axes = values[kept], axes[:, kept]
    if tall:
        return values, (axes.T @ (rows.T @ indicators)) ** 2 / values[:, None]
    return values, (axes.T @ indicators) ** 2


def _checked(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, D] as float64, and labels [N] as 0 ... C - 1 over the classes that occur."""
    rows, labels = np.asarray(rows, np.float64), np.asarray(labels)
    if rows.ndim != 2 or labels.shape != (len(rows),):
        raise ValueError(f"rows {rows.shape} and labels {labels.shape} do not belong together")
    if not np.isfinite(rows).all():
        raise UserError("a feature is not a finite number: the weights or the images are damaged")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise UserError("the examples are all of one class: a score of features needs two")
    return rows, codes
