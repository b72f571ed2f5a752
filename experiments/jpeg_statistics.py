"""Does BatchNorm with statistics of lossy JPEGs make good what they cost CIFAR-10's networks?

Li et al. 2017, "Revisiting Batch Normalization for Practical Domain Adaptation" (AdaBN): a network
holds on another domain when its norms take their mean and variance from images of that domain;
nothing is trained and no label is read. Here on the four published ResNets and all 10,000 images
of CIFAR-10's test split as lossy JPEG. Each image is classified with statistics of JPEGs other than
itself: those of one half of every class serve the other half.

Claim: the error on lossy JPEG is lower with the statistics of JPEGs than with the published ones.

Control: the published statistics are of training, on 50,000 augmented images; those made here are
of 5,000 plain ones. What that alone costs is seen on the clean images (827, 737, 690 and 661 errors
as published), with statistics of the clean images of the other half, and on the JPEGs with these:
from them to the JPEGs' own, only the images of the statistics are re-encoded.

Expected: as published, errors of 18.97, 17.44, 17.33 and 16.80 % (to the image: these are known),
and less with the JPEGs' statistics.

Measured: as published, these; 1.4 to 1.8 points more with the JPEGs' statistics. Estimating them
anew costs more than that: 1.7 to 3.0 points on clean images with clean statistics, 3.7 to 4.5 on
JPEGs with clean statistics. Against the latter, the JPEGs' own mend 2.0 to 3.2 points.

Command: `python experiments/jpeg_statistics.py ZIPS`, ZIPS as `domains.py` tells and the weights as
`domain_adaptation.py` does
Result: `experiments/results/jpeg_statistics.md`
Time: seven minutes on 2 cores, by processor time; 23 beside other work.
"""

import pathlib
import sys
from collections import Counter

import images
import numpy as np
import scipy.stats
import tyro

from jxfer.commands.main import guard
from jxfer.data.readers import Source, Subset
from jxfer.data.sources import FolderSource
from jxfer.errors import UserError
from jxfer.statistics import holm, wilson_interval
from jxfer.train import adabn, parallel, program
from jxfer.train.evaluate import Evaluator
from jxfer.zoo import store, weights
from jxfer.zoo.weights import Weights

ZOO = pathlib.Path("runs/zoo")
DEPTHS = (20, 32, 44, 56)
RESULT = pathlib.Path(__file__).resolve().parent / "results" / "jpeg_statistics.md"
BATCH = 250
ALPHA = 0.05
"""Level of a two-sided test, after Holm's correction over the networks."""
PUBLISHED, CLEAN, JPEG = "published", "clean", "JPEG"
CLAIM = (JPEG, PUBLISHED, JPEG)
COMPARISONS = (CLAIM, (CLEAN, PUBLISHED, CLEAN), (JPEG, PUBLISHED, CLEAN), (JPEG, CLEAN, JPEG))
"""(images, first statistics, second statistics)"""

Hits = dict[tuple[str, str], np.ndarray]
"""{(images, statistics): whether each image is classified correctly, bool [N]}"""


def pair(zips: pathlib.Path) -> dict[str, Source]:
    """`CLEAN` and `JPEG`: the same images of CIFAR-10's test split in the same order."""
    pngs = {jpeg: png for png, jpeg in images.jpegs(zips).items()}
    clean_root = images.unpack(zips, "cifar10_test") / "cifar10"
    jpeg_root = images.unpack(zips, "cifar10_jpeg_test") / "cifar10_jpeg"
    clean, jpeg = FolderSource(clean_root, "test"), FolderSource(jpeg_root, "test")
    positions = {clean_root / clean.name(i): i for i in range(len(clean))}
    order = [positions[pngs[jpeg_root / jpeg.name(i)]] for i in range(len(jpeg))]
    return {CLEAN: Subset(clean, np.array(order)), JPEG: jpeg}


def correct(found: Weights, sources: dict[str, Source]) -> Hits:
    """Classifies clean images and JPEGs as published, and with AdaBN's statistics of either.

    Args:
      found: the network.
      sources: as from `pair`.
    """
    model, preprocessing = store.build(found.card), found.card.preprocessing
    evaluator = Evaluator(model, preprocessing, BATCH)
    published = parallel.replicate(found.variables)
    labels = sources[JPEG].labels
    hits = {
        (name, statistics): np.zeros(len(labels), bool)
        for name, *both in COMPARISONS
        for statistics in both
    }
    for rows, others in halves(labels):
        variables = {PUBLISHED: published}
        for name, source in sources.items():
            moved = adabn.statistics(model, preprocessing, published, Subset(source, others), BATCH)
            variables[name] = published | {"batch_stats": parallel.replicate(moved)}
        for (name, statistics), right in hits.items():
            half = Subset(sources[name], rows)
            logits = evaluator.vectors(variables[statistics], half)["logits"]
            right[rows] = logits.argmax(-1) == half.labels
    return hits


def halves(labels: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(rows, all other rows), twice: every second image of each class, and the rest."""
    order = np.argsort(labels, kind="stable")
    one, other = np.sort(order[::2]), np.sort(order[1::2])
    return (one, other), (other, one)


def table(counts: dict[str, Hits]) -> str:
    """Markdown: errors by comparison and network, and what the second statistics change.

    Args:
      counts: by network, as from `correct`.
    """
    head: tuple[str, ...] = ("images", "first, second statistics", "network", "first: errors", "%")
    head += ("second: errors", "%", "mended", "broken", "p")
    lines = [head, ("---",) * len(head)]
    for name, *both in COMPARISONS:
        for network, hits in counts.items():
            first, second = (hits[name, statistics] for statistics in both)
            mended, broken, p = mcnemar(first, second)
            errors = (*_error(first), *_error(second), str(mended), str(broken), f"{p:.2g}")
            lines.append((name, ", ".join(both), network, *errors))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(images that only the second has right, only the first, exact two-sided p)."""
    mended, broken = int((second & ~first).sum()), int((first & ~second).sum())
    p = scipy.stats.binomtest(mended, mended + broken).pvalue if mended + broken else 1.0
    return mended, broken, p


def verdict(counts: dict[str, Hits]) -> str:
    """A line: in how many networks the claim is reproduced, contradicted or neither."""
    name, first, second = CLAIM
    found = [mcnemar(hits[name, first], hits[name, second]) for hits in counts.values()]
    words: Counter[str] = Counter()
    for (mended, broken, _), p in zip(found, holm([p for *_, p in found]), strict=True):
        better = "reproduced" if mended > broken else "contradicted"
        words[better if p <= ALPHA else "underpowered"] += 1
    parts = ", ".join(f"{word} in {number}" for word, number in words.items())
    return (
        "Verdict on the claim that the error on lossy JPEG is lower with the statistics of JPEGs "
        f"than with the published ones: {parts} of {len(counts)} networks."
    )


def _error(hits: np.ndarray) -> tuple[str, str]:
    wrong = int((~hits).sum())
    low, high = wilson_interval(wrong, len(hits))
    return str(wrong), f"{100 * wrong / len(hits):.2f} ({100 * low:.2f} to {100 * high:.2f})"


CAPTION = f"""
Errors on CIFAR-10's test split, clean or as lossy JPEG, in images and in % (95 % Wilson interval),
with the first and with the second statistics of BatchNorm: the published ones, or those of clean
images or JPEGs other than the image itself, the same in either form. Mended and broken: images that
only the second, or only the first, classifies correctly; p: exact McNemar test, two-sided, not
corrected. The verdict is at {ALPHA} after Holm's correction over the networks.
"""


def main(zips: tyro.conf.Positional[pathlib.Path]) -> None:
    """Measures the four networks and writes the result.

    Args:
      zips: the folder of the zip files.
    """
    sources = pair(zips)
    counts = {}
    for depth in DEPTHS:
        entry = ZOO / f"resnet{depth}-cifar10"
        if not entry.is_dir():
            raise UserError(f"{entry} does not exist; import it as domain_adaptation.py tells")
        counts[f"ResNet-{depth}"] = correct(weights.load(str(entry)), sources)
    command = "`python experiments/jpeg_statistics.py ZIPS`"
    page = f"# BatchNorm statistics of lossy JPEGs\n\n{verdict(counts)}\n\n{table(counts)}\n"
    RESULT.write_text(f"{page}{CAPTION}\nCommand: {command}. Commit: {program.commit()}.\n")
    print(f"{table(counts)}\n{verdict(counts)}\n{RESULT}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
