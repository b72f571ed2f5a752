"""Figures of a finished run beside its test accuracy; several experiments use them."""

import functools
import json
import pathlib

import corruptions
import numpy as np

from jxfer.ablate.experiment import Measure
from jxfer.advise.similarity import proxy_a_distance
from jxfer.commands import evaluate
from jxfer.data.sources import DataConfig, Source, open_for_evaluation
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.probe import features
from jxfer.train import parallel, run_folder
from jxfer.train.evaluate import Evaluator
from jxfer.zoo import weights
from jxfer.zoo.pretrained import ModelConfig, create_model


def accuracy_on(spec: str) -> Measure:
    """Percent of the test images of other data that a run's best model gets right.

    Args:
      spec: a data spec with a test split of the run's classes.
    """
    return lambda run: _accuracy(run, _test(spec))


def accuracy_under_corruption(spec: str) -> Measure:
    """Percent of corrupted test images, the mean over all of `corruptions.CORRUPTIONS`.

    Args:
      spec: a data spec with a test split of the run's classes.
    """

    def accuracy(run: pathlib.Path) -> float:
        images = _test(spec)
        shifted = (corruptions.corrupted(images, name) for name in corruptions.CORRUPTIONS)
        return float(np.mean([_accuracy(run, source) for source in shifted]))

    return accuracy


def feature_drift(spec: str) -> Measure:
    """How far a run has moved the features of test images: mean of |f(x) - f0(x)| / |f0(x)|.

    f are the pooled features of its best model, f0 those that it started from, both with BatchNorm
    on its stored averages. Kumar et al. 2022, section 4, compare the distances |f(x) - f0(x)|;
    relative ones have no unit.

    Args:
      spec: a data spec with a test split.
    """

    def drift(run: pathlib.Path) -> float:
        config, images = run_folder.read_config(run), _test(spec)
        end = weights.load(str(run))
        start = create_model(config.model, end.card.class_names, seed=config.seed, zoo=config.zoo)
        before, after = (
            features.extract(start.model, start.preprocessing, variables, images, ["pooled"])
            for variables in (start.variables, end.variables)
        )
        moved = np.linalg.norm(after["pooled"] - before["pooled"], axis=-1)
        return float(np.mean(moved / np.linalg.norm(before["pooled"], axis=-1)))

    return drift


def source_accuracy(run: pathlib.Path) -> float | None:
    """Test accuracy, in percent, of the run that a run started from; None without a test split."""
    config = run_folder.read_config(run)
    before = run_folder.read_summary(pathlib.Path(config.model.weights or ""))
    if before is None:
        raise UserError(f"{run} does not start from a finished run")
    accuracy = before["test_accuracy"]
    return None if accuracy is None else 100 * accuracy


def start_accuracy(run: pathlib.Path) -> float | None:
    """Percent of a run's test images that the network it started from gets right.

    None where its head was new. Of a run that adapts they are the target's.
    """
    config = run_folder.read_config(run)
    if config.model.head != "keep":
        return None
    return _start_accuracy(config.model, config.zoo, config.adapt.target or config.data.source)


@functools.lru_cache
def _start_accuracy(model: ModelConfig, zoo: str | None, spec: str) -> float:
    images = _test(spec)
    start = create_model(model, images.class_names, zoo=zoo)
    evaluator = Evaluator(start.model, start.preprocessing, batch_size=128)
    return 100 * evaluator.evaluate(parallel.replicate(start.variables), images).accuracy


def adaptation(name: str, scale: float = 1.0) -> Measure:
    """A figure that the summary of a run that adapts has under `adapt`, times `scale`."""

    def figure(run: pathlib.Path) -> float | None:
        summary = run_folder.read_summary(run)
        assert summary is not None
        found = summary["adapt"] and summary["adapt"][name]
        return None if found is None else scale * found

    return figure


def domain_distance(run: pathlib.Path) -> float | None:
    """Proxy A-distance between pooled features of the source's test images and of the target's.

    As the chosen model has them. None of a run that does not adapt, and of AdaBN, whose saved model
    has statistics of the target alone.
    """
    config = run_folder.read_config(run)
    if config.adapt.target is None or config.adapt.method == "adabn":
        return None
    source, target = (pooled(run, spec)[0] for spec in (config.data.source, config.adapt.target))
    return proxy_a_distance(source, target, seed=0)


def pooled(run: pathlib.Path, spec: str) -> tuple[np.ndarray, np.ndarray]:
    """(pooled features [N, C] of test images under a run's best model, their labels [N]).

    Args:
      spec: a data spec with a test split.
    """
    found, images = weights.load(str(run)), _test(spec)
    card = found.card
    model = registry.create(card.arch, len(card.class_names), through=card.through, head=card.head)
    rows = features.extract(model, card.preprocessing, found.variables, images, ["pooled"])
    return rows["pooled"], images.labels


def seconds(run: pathlib.Path) -> dict[str, float] | None:
    """Seconds of a run by what they went to; None if it resumed: they are of its last process."""
    timing, summary = json.loads((run / "timing.json").read_text()), run_folder.read_summary(run)
    if summary is None or timing["steps"] != summary["steps"]:
        return None
    found: dict[str, float] = timing["seconds"]
    return found


def _accuracy(run: pathlib.Path, images: Source) -> float:
    found = weights.load(str(run))
    if images.class_names != found.card.class_names:
        raise UserError(f"{run} has learned other classes than {', '.join(images.class_names)}")
    evaluator, variables = evaluate.build(found.card, found.variables, batch_size=128)
    return 100 * evaluator.evaluate(variables, images).accuracy


def _test(spec: str) -> Source:
    return open_for_evaluation(DataConfig(spec), "test")
