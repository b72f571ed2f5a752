"""The figures of a sweep as raw rows for CSV, the header first: nothing is rounded.

After `sweep_tables` in the flow.
"""

import json

from jxfer.report.results import Results
from jxfer.report.sweep_tables import summaries

Rows = list[list[str | float | None]]


def means(results: Results) -> Rows:
    """A row for each mean."""
    ends = [f"{kind}_{end}" for kind in ("t", "bootstrap", "wilson") for end in ("low", "high")]
    places = {setting.name: setting.x for setting in results.settings}
    rows: Rows = [["setting", "x", "arm", "measure", "n", "mean", *ends]]
    for setting, arm, name, one in summaries(results):
        pairs = (one.t, one.bootstrap, one.wilson)
        bounds = [bound for pair in pairs for bound in pair or (None, None)]
        rows.append([setting, places[setting], arm, name, len(one.values), one.mean, *bounds])
    return rows


def cells(results: Results) -> Rows:
    """A row for each cell; hyper-parameters are JSON."""
    fields = ("val_accuracy", "test_correct", "test_examples", "seconds", "commit", "error")
    head = ["key", "role", "setting", "arm", "seed", "choice", "status"]
    return [
        [*head, *results.measures, *fields],
        *(
            [
                *(cell.key, cell.role, cell.setting, cell.arm, cell.seed),
                *(json.dumps(cell.choice), cell.status),
                *(cell.measures.get(name) for name in results.measures),
                *(getattr(cell, name) for name in fields),
            ]
            for cell in results.cells
        ),
    ]


def claims(results: Results) -> Rows:
    """A row for each verdict."""
    head = ["claim", "setting", "measure", "verdict", "pairs", "missing", "estimate"]
    tail = ["effect", "p", "p_holm", "sign_flip_p", "seeds_needed"]
    pairs = ["t_interval", "bootstrap_interval"]
    return [
        [*head, *(f"{pair}_{end}" for pair in pairs for end in ("low", "high")), *tail],
        *(
            [
                *(getattr(one, name) for name in head),
                *(bound for pair in pairs for bound in getattr(one, pair) or (None, None)),
                *(getattr(one, name) for name in tail),
            ]
            for one in results.claims
        ),
    ]
