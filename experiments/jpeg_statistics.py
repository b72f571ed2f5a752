"""Does BatchNorm with statistics of lossy JPEGs make good what they cost CIFAR-10's networks?

Li et al. 2017, "Revisiting Batch Normalization for Practical Domain Adaptation" (AdaBN): a network
holds on another domain when its norms take their mean and variance from images of that domain;
nothing is trained and no label is read. Here on the four published ResNets and all 10,000 images
of CIFAR-10's test split as lossy JPEG. Each image is classified with statistics of JPEGs other than
itself: those of one half of every class serve the other half.

Claim: the error on lossy JPEG is lower with the statistics of JPEGs than with the published ones.
Expected: as published, errors of 18.97, 17.44, 17.33 and 16.80 % (to the image: these are known),
and less with the JPEGs' statistics.

Command: `python experiments/jpeg_statistics.py ZIPS`, ZIPS as `domains.py` tells and the weights as
`domain_adaptation.py` does
Result: `experiments/results/jpeg_statistics.md`
Time: three minutes on 2 cores.
"""

import pathlib
import sys

import images
import numpy as np
import scipy.stats
import tyro

from jxfer.commands.main import guard
from jxfer.data.readers import Source, Subset
from jxfer.data.sources import FolderSource
from jxfer.errors import UserError
from jxfer.statistics import wilson_interval
from jxfer.train import adabn, parallel, program
from jxfer.train.evaluate import Evaluator
from jxfer.zoo import store, weights
from jxfer.zoo.weights import Weights

ZOO = pathlib.Path("runs/zoo")
DEPTHS = (20, 32, 44, 56)
RESULT = pathlib.Path(__file__).resolve().parent / "results" / "jpeg_statistics.md"
BATCH = 250


def correct(found: Weights, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is classified correctly: as published, and with AdaBN's statistics.

    Returns:
      Two bool arrays [N].
    """
    model = store.build(found.card)
    evaluator = Evaluator(model, found.card.preprocessing, BATCH)
    published = parallel.replicate(found.variables)
    right = [np.zeros(len(source), bool) for _ in range(2)]
    for rows, others in halves(source.labels):
        moved = adabn.statistics(
            model, found.card.preprocessing, published, Subset(source, others), BATCH
        )
        adapted = published | {"batch_stats": parallel.replicate(moved)}
        half = Subset(source, rows)
        for hits, variables in zip(right, (published, adapted), strict=True):
            logits = evaluator.vectors(variables, half)["logits"]
            hits[rows] = logits.argmax(-1) == half.labels
    return right[0], right[1]


def halves(labels: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(rows, all other rows), twice: every second image of each class, and the rest."""
    order = np.argsort(labels, kind="stable")
    one, other = np.sort(order[::2]), np.sort(order[1::2])
    return (one, other), (other, one)


def table(counts: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Markdown: errors by network, and what the statistics change.

    Args:
      counts: by network, as from `correct`.
    """
    rows: list[tuple[str, ...]] = []
    for name, (published, adapted) in counts.items():
        errors = [_error(hits) for hits in (published, adapted)]
        mended, broken = int((adapted & ~published).sum()), int((published & ~adapted).sum())
        p = scipy.stats.binomtest(mended, mended + broken).pvalue if mended + broken else 1.0
        rows.append((name, *errors, str(mended), str(broken), f"{p:.2g}"))
    head = ("network", "published", "the JPEGs'", "mended", "broken", "p")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _error(hits: np.ndarray) -> str:
    low, high = wilson_interval(int((~hits).sum()), len(hits))
    return f"{100 * (~hits).mean():.2f} ({100 * low:.2f} to {100 * high:.2f})"


CAPTION = """
Error on CIFAR-10's test split as lossy JPEG, % (95 % Wilson interval), with the published
statistics of BatchNorm and with those of JPEGs other than the image itself. Mended and broken:
images that only the second, or only the first, classifies correctly; p: exact McNemar test,
two-sided.
"""


def main(zips: tyro.conf.Positional[pathlib.Path]) -> None:
    """Measures the four networks and writes the result.

    Args:
      zips: the folder of the zip files.
    """
    images.jpegs(zips)
    source = FolderSource(images.unpack(zips, "cifar10_jpeg_test") / "cifar10_jpeg", "test")
    counts = {}
    for depth in DEPTHS:
        entry = ZOO / f"resnet{depth}-cifar10"
        if not entry.is_dir():
            raise UserError(f"{entry} does not exist; import it as domain_adaptation.py tells")
        counts[f"ResNet-{depth}"] = correct(weights.load(str(entry)), source)
    command = "`python experiments/jpeg_statistics.py ZIPS`"
    page = f"# BatchNorm statistics of lossy JPEGs\n\n{table(counts)}\n{CAPTION}\n"
    RESULT.write_text(f"{page}Command: {command}. Commit: {program.commit()}.\n")
    print(f"{table(counts)}\n{RESULT}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
