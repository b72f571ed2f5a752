"""Draws the features of two domains before and after adaptation, side by side.

No claim of its own: the figure beside the table of `domain_adaptation.py`, from its runs. Test
images of source and target, at most 30 of each class and domain, as the chosen models have them:
pooled features, standardised, by t-SNE (van der Maaten & Hinton 2008) of both domains together. One
run of each arm, that of the first seed. Proxy A-distances are the table's, of that run.

Not for `adabn`, the model that it saves has statistics of the target alone, nor for `oracle`, whose
runs know no source.

Expected: two clouds under `source_only`; under a method that works the domains fall together, class
by class.

Command, after the table: `python experiments/domain_features.py runs/domain_adaptation`
Time: a minute.
"""

import json
import pathlib
import sys
from typing import Any

import measures
import numpy as np
import tyro

from jxfer.commands.main import guard
from jxfer.errors import UserError
from jxfer.report import figures
from jxfer.report.chart import COLOURS
from jxfer.train import run_folder

EACH = 30
"""Images of each class and domain."""
DOMAINS = ("source", "target")


def draw(
    sweep: tyro.conf.Positional[pathlib.Path],
    setting: str = "MNIST -> USPS",
    arms: tuple[str, ...] = ("source_only", "dann", "mcc"),
) -> None:
    """Writes `SWEEP/report/figures/features` as SVG, PNG and PDF.

    Args:
      sweep: the folder of the table's runs.
      setting: the pair of domains.
      arms: methods, a panel each.

    Raises:
      UserError: there is no such table, a run of it is missing, or an arm is one of those without
        features of two domains.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    try:
        results = json.loads((sweep / "results.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{sweep} holds no results.json of a table: {error}") from None
    cells = [_cell(results["cells"], setting, arm) for arm in arms]
    figure = Figure(figsize=(3.6 * len(arms), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(arms), squeeze=False)[0]
    for axes, arm, cell in zip(panels, arms, cells, strict=True):
        _panel(axes, sweep / "cells" / cell["key"])
        found = cell["measures"]
        accuracy, distance = found["test accuracy"], found["proxy A-distance"]
        axes.set_title(f"{arm}\n{accuracy:.1f} % of the target, A-distance {distance:.2f}")
    handles = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in COLOURS[:2]]
    figure.legend(handles, DOMAINS, loc="outside lower center", ncols=2)
    figure.suptitle(setting)
    for file in figures.save(figure, sweep / "report" / "figures" / "features"):
        print(file, file=sys.stderr)


def _cell(cells: list[dict[str, Any]], setting: str, arm: str) -> dict[str, Any]:
    """The first finished run of an arm in a setting of the table, with features of both domains."""
    for cell in cells:
        place = (cell["role"], cell["setting"], cell["arm"], cell["status"])
        if place == ("table", setting, arm, "finished"):
            if cell["measures"]["proxy A-distance"] is None:
                raise UserError(f"--arms {arm}: it has no features of two domains; leave it out")
            return cell
    raise UserError(f'the table has no finished run of "{arm}" in "{setting}"')


def _panel(axes: Any, run: pathlib.Path) -> None:
    """Writes the class of each image where t-SNE places its features, in the domain's colour."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    config = run_folder.read_config(run)
    domains = []
    for spec in (config.data.source, config.adapt.target):
        rows, labels = measures.pooled(run, str(spec))
        some = np.concatenate([np.flatnonzero(labels == c)[:EACH] for c in np.unique(labels)])
        domains.append((rows[some], labels[some]))
    rows = StandardScaler().fit_transform(np.concatenate([rows for rows, _ in domains]))
    places = TSNE(random_state=0).fit_transform(rows)
    parts = np.split(places, [len(domains[0][0])])
    for part, (_, labels), colour in zip(parts, domains, COLOURS, strict=False):
        axes.scatter(*part.T, s=0)  # for the limits: text has none
        for (x, y), label in zip(part, labels, strict=True):
            axes.text(x, y, str(label), color=colour, fontsize=6)
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(draw)))
