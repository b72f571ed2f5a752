"""What a sweep will cost, before it runs: the compiled step of each kind of cell, timed.

After `sweep` in the flow.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jxfer.ablate.cells import Job, unique
from jxfer.ablate.experiment import Cell
from jxfer.ablate.sweep import Sweep
from jxfer.data import screen
from jxfer.data.sources import Splits
from jxfer.train import parallel, plans, prefix_choice
from jxfer.train.feed import Images, load_target, with_target
from jxfer.train.selection import evaluation_steps
from jxfer.train.state import Plan
from jxfer.train.step import make_train_step
from jxfer.trees import Tree
from jxfer.zoo import weights
from jxfer.zoo.pretrained import Pretrained

STEPS = 3
"""That are timed of each compiled step, after a first one."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The cells of one arm in one setting."""

    setting: str
    arm: str
    cells: int
    """Runs of the search and of the table, or of the networks that these start from."""
    steps: int
    """Of one run."""
    flops: float
    """Of one run's training steps, as the compiler counts them, on one device; a prefix that is
    cached has no part in them."""
    seconds: float
    """Of the same steps. Compiling, filling the cache, reading images and evaluation come on top.
    """


def estimate(sweep: Sweep) -> list[Kind]:
    """Compiles the step of each kind of cell and times it on a batch.

    One program serves all cells whose configs differ in rates and seeds alone.

    Raises:
      UserError: as `plans.set_up` and `screen.load_splits`.
    """
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in unique(sweep.grid.planned()):
        arm = f"{job.arm}: its source" if job.role == "source" else job.arm
        groups.setdefault((job.setting, arm), []).append(job)
    known: dict[str, tuple[int, float, float]] = {}
    kinds = []
    for (setting, arm), jobs in groups.items():
        cell = jobs[-1].cell  # of the table, which comes after the search
        kind = _kind(cell)
        if kind not in known:
            known[kind] = _measure(cell)
        kinds.append(Kind(setting, arm, len(jobs), *known[kind]))
    return kinds


def _kind(cell: Cell) -> str:
    """The same for all cells that run one program for as many steps."""
    config = dataclasses.replace(
        cell.config,
        seed=0,
        data=dataclasses.replace(cell.config.data, split_seed=0),
        optimizer=cell.config.optimizer.without_rates(),
    )
    return repr(config) + (_kind(cell.after) if cell.after else "")


def _measure(cell: Cell) -> tuple[int, float, float]:
    """(steps, FLOPs, seconds) of a run."""
    config = cell.config
    splits = screen.load_splits(config.data)
    steps = evaluation_steps(config, len(splits.train))[-1]
    pretrained, phases = _set_up(cell, splits, steps)
    target = load_target(config, splits.train.class_names)
    unlabelled = target.train if target else None
    images = next(Images(config, splits, pretrained.preprocessing).train_batches(0))
    flops = seconds = 0.0
    for plan in phases:
        choice = prefix_choice.choose(plan, config, splits, unlabelled)
        batch = images
        if choice.train is not None:
            features = np.zeros((config.batch_size, *choice.train.shape), np.float32)
            batch = {"features": features, "label": images["label"]}
        if plan.adaptation.acts:
            batch = next(with_target(iter([batch]), iter([batch])))
        step_flops, step_seconds = _time(plan, choice.output, pretrained.variables, batch)
        flops += plan.total_steps * step_flops
        seconds += plan.total_steps * step_seconds
    return steps, flops, seconds


def _set_up(cell: Cell, splits: Splits, steps: int) -> tuple[Pretrained, tuple[Plan, ...]]:
    config, names = cell.config, splits.train.class_names
    per_epoch = len(splits.train) / config.batch_size
    if cell.after is None:
        return plans.set_up(config, names, steps, per_epoch, splits.train)
    # What it starts from is still to be trained: random values of the same network stand for it.
    kept = config.model.head == "keep"
    model = dataclasses.replace(config.model, weights=None, **_network(cell), reuse=(), head="new")
    config = dataclasses.replace(config, model=model)
    pretrained = plans.load(config, names).as_if_loaded(head=kept)
    return pretrained, plans.make_plans(config, pretrained, steps, per_epoch)


def _network(cell: Cell) -> dict[str, Any]:
    """`arch`, `through` and `image_size` of a cell's model, as it has them from its weights."""
    model = cell.config.model
    if cell.after is not None:
        known = _network(cell.after)
    elif model.weights is not None:
        card = weights.load(model.weights, arch=model.arch, zoo=cell.config.zoo).card
        known = {"arch": card.arch, "through": card.through}
        known["image_size"] = card.preprocessing.size
    else:
        known = dict.fromkeys(("arch", "through", "image_size"))
    if model.arch is not None and known["arch"] not in (None, model.arch):
        known["through"] = None
    return {name: getattr(model, name) or value for name, value in known.items()}


def _time(
    plan: Plan, after: str | None, variables: Tree, batch: dict[str, np.ndarray]
) -> tuple[float, float]:
    """(FLOPs, seconds) of a step."""
    train_step: Any = parallel.compile_step(make_train_step(plan, after))
    (sharded,) = parallel.shard([batch])
    state = parallel.replicate(plan.initial_state(variables))
    reference = plan.reference(variables)
    if plan.source_head is not None and plan.model.num_classes is not None:
        shape = (plan.model.num_classes, plan.source_head[1])
        reference = reference | {"relationship": np.full(shape, 1 / shape[1], np.float32)}
    reference = parallel.replicate(reference)
    compiled = train_step.lower(state, sharded, reference).compile()
    jax.block_until_ready(compiled(state, sharded, reference))
    start = time.perf_counter()
    for _ in range(STEPS):
        jax.block_until_ready(compiled(state, sharded, reference))
    return compiled.cost_analysis()["flops"], (time.perf_counter() - start) / STEPS
