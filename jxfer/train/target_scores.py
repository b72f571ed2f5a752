"""Scores that choose a step, or a hyper-parameter, of a domain adaptation without target labels.

After `metrics` in the flow. Pure functions on host arrays, in float64. Of each the larger is the
better, and what has diverged scores -inf, so that it is never better than what has not. Scores
compare networks on the same images alone.
"""

import math

import numpy as np
import numpy.typing as npt

from jxfer.errors import UserError

_BLOCK = 512
"""Rows of the similarity matrix at once: 40 MB for 10,000 images, and a few times that to work."""
_FOLDS = 5
_INVERSE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C of the domain classifier."""


def entropy(probabilities: npt.NDArray[np.floating]) -> float:
    """Minus the mean entropy of the predictions, in nats: mean_i sum_k p_ik log p_ik.

    Morerio et al. 2018, "Minimal-Entropy Correlation Alignment for Unsupervised Deep Domain
    Adaptation". It is 0, its largest, for predictions that are sure, right or wrong: also where
    every image gets the same class.

    Args:
      probabilities: [N, K] of the target images; rows add up to 1.

    Returns:
      Between -log K and 0; -inf if a probability is not finite.

    Raises:
      UserError: there are fewer than two images.
    """
    from scipy import special

    p = _target_rows(probabilities)
    if not np.isfinite(p).all():
        return -math.inf
    return float(np.mean(np.sum(special.xlogy(p, p), axis=1)))


def soft_neighbourhood_density(
    probabilities: npt.NDArray[np.floating], temperature: float = 0.05
) -> float:
    """Mean entropy, in nats, of how alike an image's prediction is to those of all others.

    Saito et al. 2021, "Tune it the Right Way: Unsupervised Validation of Domain Adaptation via
    Soft Neighborhood Density", section 3. With f_i a row of the probabilities over its L2 norm,

        S_ij = f_i . f_j,    P_ij = exp(S_ij / tau) / sum_{j' != i} exp(S_ij' / tau),  j != i
        score = -1/N sum_i sum_{j != i} P_ij log P_ij

    An image with many close neighbours has a flat P_i. exp(score) is their effective number. The
    authors' code gives an image the similarity -1 to itself instead of leaving it out: beside a
    neighbour at S >= 0 that weighs at most exp(-20). The score is largest where every image has the
    same prediction, so a network that gives them all one class, or none, wins by it.

    The time grows with N^2, the memory with N.

    Args:
      probabilities: [N, K] of the target images; rows add up to 1.
      temperature: tau.

    Returns:
      Between 0 and log(N - 1); -inf if a probability is not finite.

    Raises:
      UserError: there are fewer than two images.
    """
    from scipy import special

    p = _target_rows(probabilities)
    if not np.isfinite(p).all():
        return -math.inf
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(unit), _BLOCK):
        logits = unit[start : start + _BLOCK] @ unit.T / temperature
        own = np.arange(len(logits))
        logits[own, start + own] = -math.inf
        total += float(special.entr(special.softmax(logits, axis=1)).sum())
    return total / len(unit)


def importance_weighted_accuracy(
    correct: npt.NDArray[np.bool_],
    source_features: npt.NDArray[np.floating],
    source_train_features: npt.NDArray[np.floating],
    target_features: npt.NDArray[np.floating],
    seed: int,
) -> float:
    """The accuracy on target images, estimated from labelled source images: 1 - `controlled_risk`.

    Sugiyama et al. 2007, "Covariate Shift Adaptation by Importance Weighted Cross Validation"
    (JMLR), with the weights and the control variate of You et al. 2019, "Towards Accurate Model
    Selection in Deep Unsupervised Domain Adaptation" (ICML), and the 0/1 error as the loss. It
    holds as far as the features x tell all: p(y | x) must be that of the source, and the target
    must lie where the source has images. It is an estimate, so it can leave [0, 1].

    Args:
      correct: [N] whether the prediction is right, of the source's validation images.
      source_features: [N, D] of the same images.
      source_train_features: [M, D]; the domain classifier is fitted to these and the target's.
      target_features: [L, D].
      seed: of the split that chooses the classifier's regularisation.

    Returns:
      The estimate; -inf if a feature is not finite, or is so far from the others that the estimate
      is not.

    Raises:
      UserError: one of the three has fewer than two images.
    """
    domains = (source_features, source_train_features, target_features)
    if min(map(len, domains)) < 2:
        raise UserError(
            "importance weights need at least two images of each kind, not "
            f"{len(source_features)} of the source to validate on, {len(source_train_features)} of "
            f"the source to train on and {len(target_features)} of the target"
        )
    if not all(np.isfinite(features).all() for features in domains):
        return -math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        weights = density_ratio(source_features, source_train_features, target_features, seed)
        accuracy = 1 - controlled_risk(weights, ~np.asarray(correct, bool))
    return accuracy if math.isfinite(accuracy) else -math.inf


def density_ratio(
    features: npt.NDArray[np.floating],
    source: npt.NDArray[np.floating],
    target: npt.NDArray[np.floating],
    seed: int,
) -> npt.NDArray[np.float64]:
    """w(x) = p_target(x) / p_source(x), by a classifier that tells the two domains apart.

    You et al. 2019: by Bayes' rule w(x) = (M / L) p(target | x) / p(source | x). The classifier is
    a logistic regression on features of zero mean and unit variance. Its time grows with M + L; a
    few thousand images of each domain are enough.

    Args:
      features: x [N, D], of source images that are not among `source`.
      source: [M, D], at least two, finite.
      target: [L, D], at least two, finite.
      seed: of the split that chooses the regularisation.

    Returns:
      [N] float64, not negative; inf where it overflows.
    """
    import threadpoolctl
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([source, target]).astype(np.float64)
    domains = np.repeat([0, 1], [len(source), len(target)])
    folds = StratifiedKFold(min(_FOLDS, *np.bincount(domains)), shuffle=True, random_state=seed)
    # No one strength fits: with 512 features, 2,000 images of each domain and no shift, weights of
    # noise put the accuracy off by 3 points at C = 1; at a chosen C, by less than 0.1. A fifth
    # is held out, as in the authors' code, but judged by its log-likelihood: the accuracy that they
    # take does not see the probabilities, which the weights are made of.
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _INVERSE_STRENGTHS},
        scoring="neg_log_loss",
        cv=[next(folds.split(rows, domains))],
        error_score="raise",
    )
    # Products this small lose more to a second thread than they gain.
    with threadpoolctl.threadpool_limits(1, "blas"):
        search.fit(rows, domains)
        log_odds = search.decision_function(np.asarray(features, np.float64))
    return np.exp(log_odds) * (len(source) / len(target))


def controlled_risk(
    weights: npt.NDArray[np.float64], losses: npt.NDArray[np.floating | np.bool_]
) -> float:
    """Importance-weighted mean of the losses, with the mean of the weights as control variate.

    You et al. 2019: as E[w] = 1 is known, its miss says how far the mean of w l is off,

        R = mean(w l) + eta mean(w) - eta,    eta = -Cov(w l, w) / Var(w)

    which has the variance of mean(w l) times 1 - Corr(w l, w)^2. Equal weights say nothing: eta is
    0 then.

    Args:
      weights: w [N].
      losses: l [N].
    """
    weighted = weights * losses
    if np.ptp(weights) == 0:
        return float(np.mean(weighted))
    centred = weights - np.mean(weights)
    eta = -(centred @ weighted) / (centred @ centred)
    return float(np.mean(weighted) + eta * (np.mean(weights) - 1))


def _target_rows(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    if len(probabilities) < 2:
        raise UserError(
            f"to choose by target images takes at least two of them, not {len(probabilities)}"
        )
    return np.asarray(probabilities, np.float64)
