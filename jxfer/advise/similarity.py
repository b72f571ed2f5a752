"""Similarity: how far a target's images lie from those that the weights were trained on.

After `transferability` in the flow. No labels are read. `frechet` and `proxy_a_distance` compare
features of the target with the source statistics of a card (`zoo.card.SourceStatistics`), on the
host in float64; `norm_shift` needs nothing but the network itself, and one pass over the target.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jxfer import trees
from jxfer.data import loader
from jxfer.data.readers import Source
from jxfer.data.transforms import Preprocessing, normalise
from jxfer.errors import UserError
from jxfer.models.layers import NORM_EPSILON
from jxfer.models.registry import Model
from jxfer.probe.features import rows_per_block
from jxfer.train import metrics, parallel
from jxfer.train.evaluate import one_late
from jxfer.train.step import Batch
from jxfer.trees import Tree

_DRAWS = 4
"""Samples of the source's own Gaussian that the floor of a Fréchet distance is a mean over."""
_FOLDS = 5


def frechet(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians: |a - b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is
    symmetric and positive: singular covariances do no harm, and nothing becomes complex.

    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; Heusel
    et al. 2017, "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS), equation 6.

    Args:
      mean_a, mean_b: [D].
      covariance_a, covariance_b: [D, D], symmetric.
    """
    a, b = np.asarray(covariance_a, np.float64), np.asarray(covariance_b, np.float64)
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    root = _root(a)
    product = root @ b @ root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return float(max(difference @ difference + np.trace(a) + np.trace(b) - 2 * cross, 0.0))


@dataclasses.dataclass(frozen=True)
class FrechetShift:
    """Fréchet distance of a sample of the target from the source, and what of it is chance."""

    distance: float
    """squared, in the features' own units: not comparable between networks"""
    floor: float
    """the distance that as many draws from the source's own Gaussian have on average"""
    excess: float
    """(distance - floor) / the source's total variance: near 0 where the target is like the source,
    comparable between networks"""


def frechet_shift(
    mean: np.ndarray, covariance: np.ndarray, rows: np.ndarray, seed: int
) -> FrechetShift:
    """The Fréchet distance of target features from the source's moments.

    A sample's distance is biased upwards, by about (D + 5) / 4N of the source's variance where all
    axes have the same one (Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score",
    say that the bias depends on the model): N = 5 D rows still give 5 %. The floor measures it on
    Gaussian samples of the very same size, so that the excess means something for few rows too.

    Args:
      mean: [D], of the source.
      covariance: [D, D], of the source.
      rows: [N, D], features of the target.
      seed: of the draws.

    Raises:
      UserError: fewer than two rows, or rows of another number of features.
    """
    _check_features(mean.shape[-1], rows)
    if len(rows) < 2:
        raise UserError("a Fréchet distance needs at least two images of the target")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)

    def distance(sample: np.ndarray) -> float:
        return frechet(mean, covariance, sample.mean(0), np.cov(sample, rowvar=False))

    rng, root = np.random.default_rng(seed), _root(covariance)
    floor = np.mean(
        [distance(mean + rng.standard_normal(rows.shape) @ root) for _ in range(_DRAWS)]
    )
    found, variance = distance(np.asarray(rows, np.float64)), np.trace(covariance)
    return FrechetShift(found, float(floor), float((found - floor) / variance))


def proxy_a_distance(source: np.ndarray, target: np.ndarray, seed: int) -> float:
    """Proxy A-distance 2 (1 - 2 e), e the error of a linear classifier between the domains.

    0: no linear classifier tells them apart; 2: one always does. The error is that on rows held out
    of training, each once in 5 folds, and the mean of the two domains' own errors, so that a larger
    domain is no advantage. It is kept from rising above one half, which is chance. The classifier
    is a linear discriminant with the shrunk covariance of Ledoit & Wolf 2004: no iteration, and
    nothing to tune. The standard deviation of the result is at most about sqrt(2 / n), where n is
    the number of rows of the smaller domain.

    Ben-David et al. 2007, "Analysis of Representations for Domain Adaptation" (NeurIPS).

    Args:
      source: [N, D].
      target: [M, D].
      seed: of the folds.

    Raises:
      UserError: a domain has fewer than two rows, or they have different numbers of features.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold

    _check_features(source.shape[1], target)
    folds = min(_FOLDS, len(source), len(target))
    if folds < 2:
        raise UserError("a proxy A-distance needs at least two images of each domain")
    rows = np.concatenate([source, target]).astype(np.float64)
    domains = np.repeat([0, 1], [len(source), len(target)])
    wrong = np.empty(len(rows))
    for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(
        rows, domains
    ):
        classifier = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.array([0.5, 0.5])
        )
        classifier.fit(rows[train], domains[train])
        wrong[held_out] = classifier.predict(rows[held_out]) != domains[held_out]
    error = (wrong[domains == 0].mean() + wrong[domains == 1].mean()) / 2
    return float(2 * (1 - 2 * min(error, 0.5)))


@dataclasses.dataclass(frozen=True)
class NormShift:
    """How far the inputs of the norm layers moved."""

    layers: dict[str, float]
    """by path, from the input to the output; empty where there is nothing to compare with"""
    reason: str | None = None
    """why it is empty"""

    @property
    def stages(self) -> dict[str, float]:
        """Mean over the layers of each stage."""
        groups: dict[str, list[float]] = {}
        for path, shift in self.layers.items():
            groups.setdefault(path.split("/")[0], []).append(shift)
        return {stage: float(np.mean(shifts)) for stage, shifts in groups.items()}


def norm_shift(
    model: Model,
    preprocessing: Preprocessing,
    variables: Tree,
    source: Source,
    *,
    batchnorm: Literal["standard", "folded"],
    batch_size: int = 128,
) -> NormShift:
    """Shift of the BatchNorm statistics: what the stored averages expect against what comes.

    For each channel, the squared Fréchet distance of the Gaussians with the target's and with the
    stored moments, in units of the stored variance (+ epsilon, which the layer adds too):
    ((m - m_s)^2 + (s - s_s)^2) / (s_s^2 + eps); then the mean over channels. Schneider et al. 2020,
    "Improving robustness against common corruptions by covariate shift adaptation" (NeurIPS),
    compare the two with this distance. A symmetric KL divergence would be infinite for a channel
    that the target leaves constant.

    The moments are those of the frozen network, every norm on its stored averages, over all
    positions of all images. Were the norms in train mode, each layer would undo the shift of those
    before it and show only what it adds itself, and the moments would depend on the batch. So a
    shift that an early layer lets through counts in the later ones too, as it does for a frozen
    backbone. On the images of the source it is small but not zero: training augments.

    Args:
      variables: on the host.
      source: the target's images.
      batchnorm: of the weights' card; where the norms are folded, their averages are placeholders.
      batch_size: images per step over all devices.

    Raises:
      UserError: the source is empty; while iterating, an image cannot be read.
    """
    if not model.norm_paths():
        return NormShift({}, f"{model.architecture.name} has no norm layers")
    if batchnorm == "folded":
        return NormShift({}, "the norms were folded into the convolutions: no statistics are left")
    if not len(source):
        raise UserError("the data holds no image: nothing to compare with the norms' statistics")
    batches = loader.eval_batches(
        source,
        preprocessing,
        batch_size=rows_per_block(len(source), batch_size),
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    step, replicated = _compiled(model, preprocessing), parallel.replicate(variables)
    masked = ({"image": batch["image"], "mask": batch["mask"]} for batch in batches)
    results = (step(replicated, batch) for batch in parallel.shard(masked))
    sums = metrics.add(parallel.fetch(result) for result in one_late(results))
    statistics = trees.flatten(variables["batch_stats"])
    shifts = {}
    for path in model.norm_paths():
        first, second = sums[path] / sums[f"{path} count"]  # moments in units of the stored ones
        variance = np.asarray(statistics[f"{path}/var"], np.float64)
        stored = np.sqrt(variance / (variance + NORM_EPSILON))
        deviation = np.sqrt(np.maximum(second - first**2, 0))
        shifts[path] = float((first**2 + (deviation - stored) ** 2).mean())
    order = {stage: i for i, stage in enumerate(model.stages)}
    return NormShift(dict(sorted(shifts.items(), key=lambda item: order[item[0].split("/")[0]])))


@functools.lru_cache(maxsize=8)
def _compiled(model: Model, preprocessing: Preprocessing) -> Callable[..., Any]:
    def norm_sums_step(variables: Tree, batch: Batch) -> metrics.Sums:
        """Sums over all devices of each norm's normalised inputs and of their squares, [2, C]."""
        statistics = trees.flatten(variables["batch_stats"])
        sums = {}
        for path, x in model.norm_inputs(
            variables, normalise(batch["image"], preprocessing)
        ).items():
            x = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])  # [B, positions, C]
            mean = statistics[f"{path}/mean"].reshape(1, 1, -1)
            variance = statistics[f"{path}/var"].reshape(1, 1, -1)
            # Around the stored mean: of the raw squares, little would be left in float32.
            x = (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
            by_image = jnp.stack([x.sum(1), (x**2).sum(1)])  # [2, B, C]
            sums[path] = jnp.where(batch["mask"].reshape(1, -1, 1) > 0, by_image, 0).sum(1)
            sums[f"{path} count"] = batch["mask"].sum() * x.shape[1]
        return jax.lax.psum(sums, parallel.AXIS)

    return parallel.compile_step(norm_sums_step)


def _check_features(source: int, rows: np.ndarray) -> None:
    if rows.shape[1] != source:
        raise UserError(
            f"the source has {source} features and the target {rows.shape[1]}: they are not of one "
            "network"
        )


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, axes = np.linalg.eigh(covariance)
    return axes * np.sqrt(np.maximum(values, 0)) @ axes.T
