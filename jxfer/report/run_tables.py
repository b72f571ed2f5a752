"""The tables of a single run's report.

After `run_results` and `page` in the flow; `tables` writes them as Markdown, LaTeX and CSV.
"""

from collections.abc import Sequence

from jxfer import statistics
from jxfer.report.diagnostics import Bin, ClassFigures, Confusion, Mistake, Rate
from jxfer.report.page import Cell, Code, Link, Number, Table
from jxfer.report.run_results import RunResults

NONE = "–"
"""Where there is no figure."""
SPLITS = {"test": "test", "val": "validation"}
_FILES = ("config.json", "metrics.jsonl", "summary.json", "timing.json", "model/card.json")
_FROZEN = {True: "yes, bit for bit", False: "no", None: "nothing is frozen"}
_DIGEST = 12  # hex digits that tell tensors apart


def key_figures(run: RunResults, calibration_error: float) -> Table:
    """What the run reached, and what it took."""
    summary, seconds = run.summary, run.timing["seconds"]
    split, figures = SPLITS[run.split], run.figures
    rows = [
        (f"{split} accuracy", _of(run.correct, len(run.source))),
        ("validation accuracy", _of(summary["val_correct"], summary["val_examples"])),
    ]
    if run.split == "val":
        del rows[1]
    if figures["top5_accuracy"] is not None:
        rows.append((f"{split} top-5 accuracy", f"{figures['top5_accuracy']:.1%}"))
    stopped = ", stopped early" if summary["stopped_early"] else ""
    speed = run.timing["examples_per_second"]
    rows += [
        (f"{split} macro-F1", f"{figures['macro_f1']:.4f}"),
        (f"{split} loss, nats", f"{figures['loss']:.4f}"),
        ("expected calibration error", f"{calibration_error:.4f}"),
        ("data", run.data),
        *_adaptation(run),
        ("classes", str(len(summary["classes"]))),
        ("training images", f"{summary['train_examples']:,}"),
        ("network", f"{run.card.arch}, {run.card.through or 'whole'}"),
        ("weights at the start", run.card.parents[0].name if run.card.parents else "random"),
        ("strategy", summary["strategy"]),
        ("parameters of the last phase", _parameters(summary["parameters"])),
        ("frozen part unchanged", _FROZEN[summary["frozen_unchanged"]]),
        ("best step", f"{summary['best_step']} of {summary['steps']}{stopped}"),
        ("seconds", f"{seconds['total']:.1f}"),
        ("training images per second", NONE if speed is None else f"{speed:,.0f}"),
        ("devices, hosts", f"{summary['devices']}, {summary['hosts']}"),
        ("unreadable images left out", str(len(summary["skipped_images"]))),
    ]
    return Table("Key figures", ("figure", "value"), rows, _reservations(run))


def _adaptation(run: RunResults) -> list[tuple[str, str]]:
    """What a run says of its source, and of what it was adapted to."""
    adapt = run.summary["adapt"]
    if adapt is None:
        return []
    oracle, source = adapt["oracle_test_accuracy"], adapt["source_test_correct"]
    rows = [
        ("source", run.config.data.source),
        ("target", adapt["target"]),
        ("method", adapt["method"]),
        ("best step chosen by", adapt["select"]),
        ("diverged", "yes" if adapt["diverged"] else "no"),
    ]
    if source is not None:
        rows.append(("source test accuracy", _of(source, adapt["source_test_examples"])))
    if oracle is not None:
        name = f"test accuracy at step {adapt['oracle_step']}, the choice of the target's labels"
        rows.append((name, f"{oracle:.1%}"))
    return rows


def _reservations(run: RunResults) -> str:
    """What must be said beside the figures."""
    said = ["Accuracies with 95 % Wilson intervals."]
    if run.split == "val":
        said.append(
            "The data has no test split. All figures are of the validation split, which chose the "
            "best step: they are a little too good."
        )
    again = int((run.predicted == run.source.labels).sum())
    if again != run.correct:
        said.append(
            f"Evaluated again, in float32, the model classifies {again} images rightly, not "
            f"{run.correct}; what follows is of this evaluation."
        )
    return " ".join(said)


def per_class(names: Sequence[str], figures: Sequence[ClassFigures]) -> Table:
    """Accuracy, precision and F1 of each class."""
    rows: list[tuple[Cell, ...]] = []
    for name, one in zip(names, figures, strict=True):
        images = one.accuracy.n if one.accuracy else 0
        rates = (one.accuracy, one.precision, one.f1)
        rows.append((name, Number(str(images), images), *map(_rate, rates)))
    return Table(
        "Classes",
        ("class", "images", "accuracy (recall), %", "precision, %", "F1, %"),
        rows,
        "95 % intervals: Wilson's; that of F1 follows from Wilson's interval of the part of the "
        "images of the class or predicted as it that are both (Lam, Gopal & Qian 2023).",
    )


def confused(names: Sequence[str], pairs: Sequence[Confusion]) -> Table:
    """Which classes are taken for which."""
    rows = [
        (
            names[pair.actual],
            names[pair.predicted],
            Number(str(pair.count), pair.count),
            Number(f"{pair.count / pair.n:.1%}", pair.count / pair.n),
        )
        for pair in pairs
    ]
    columns = ("actual class", "predicted class", "images", "of the actual class")
    return Table("Most confused classes", columns, rows)


def bins(found: Sequence[Bin]) -> Table:
    """The reliability diagram in numbers."""
    rows = [
        (
            Number(f"{one.left:.3f} to {one.right:.3f}", one.left),
            Number(str(one.accuracy.n), one.accuracy.n),
            Number(f"{one.confidence:.3f}", one.confidence),
            _rate(one.accuracy),
        )
        for one in found
    ]
    columns = ("confidence", "images", "mean confidence", "accuracy, %")
    return Table("Calibration by bin", columns, rows, "With 95 % Wilson intervals.")


def mistakes(run: RunResults, found: Sequence[Mistake]) -> Table:
    """The images behind the thumbnails."""
    names = run.card.class_names
    rows = [
        (
            run.source.name(one.index),
            names[one.actual],
            names[one.predicted],
            Number(f"{one.confidence:.1%}", one.confidence),
        )
        for one in found
    ]
    columns = ("image", "actual class", "predicted class", "confidence")
    return Table("Most confident mistakes", columns, rows)


def lineage(run: RunResults) -> Table:
    """The model and what its weights descend from, the nearest first."""
    rows = [
        (
            one.name,
            one.arch,
            one.dataset or NONE,
            one.strategy or "imported",
            one.source or NONE,
            one.licence,
            one.tensors_sha256[:_DIGEST],
        )
        for one in (run.card.as_ancestor(), *run.card.parents)
    ]
    columns = ("weights", "network", "trained on", "strategy", "source", "licence", "sha256")
    caption = "" if run.card.parents else "The run began with random weights."
    return Table("Lineage of the weights", columns, rows, caption)


def provenance(run: RunResults, base: str) -> Table:
    """What made the run, with links to its files.

    Args:
      base: the run folder, as seen from the report.
    """
    rows: list[tuple[Cell, ...]] = [
        ("command", Code(run.card.command) if run.card.command else NONE),
        ("commit", run.summary["commit"] or NONE),
        ("seed", str(run.config.seed)),
        ("jxfer", run.card.jxfer_version),
        *run.summary["versions"].items(),
        *((file, Link(file, f"{base}/{file}")) for file in _FILES),
    ]
    return Table("Command, commit, versions and files", ("what", "value"), rows)


def _of(correct: int, examples: int) -> str:
    low, high = statistics.wilson_interval(correct, examples)
    return f"{correct / examples:.1%} ({low:.1%} to {high:.1%}), {correct} of {examples}"


def _rate(rate: Rate | None) -> Cell:
    if rate is None:
        return NONE
    value, low, high = (100 * part for part in (rate.value, rate.low, rate.high))
    return Number(f"{value:.1f} ({low:.1f} to {high:.1f})", rate.value)


def _parameters(groups: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in groups.items() if count)
