"""`jxfer audit`: what each phase of a strategy costs, and whether it leaks."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

from jxfer import text
from jxfer.data import screen
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.losses.regularise import RegulariseConfig
from jxfer.train import fit, memory, parallel, summary
from jxfer.train.audit import Audit, audit
from jxfer.train.config import TrainConfig
from jxfer.train.fit import Fit
from jxfer.train.plans import load, make_plans, set_up
from jxfer.train.selection import evaluation_steps
from jxfer.train.state import Plan
from jxfer.zoo.pretrained import Pretrained

GROUP_COLUMNS = (
    *("phase", "group", "parameters", "optimizer bytes", "norms", "statistics bytes"),
    *summary.WORK_COLUMNS,
)
STEP_COLUMNS = (*("phase", "GFLOP", "least", "temporary MiB", "least", "optimizer bytes", "least"),)
NO_DATA = DataConfig("")
_EXAMPLES = 1000  # for schedules and phases, where no data say how long an epoch is


def main(args: list[str]) -> int:
    """Runs `jxfer audit ARGS` and returns the exit code."""

    def run(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(NO_DATA),  # noqa: B008
        classes: int | None = None,
        largest_batch: bool = False,
        json: bool = False,
    ) -> int:
        """Audit a training: what each phase costs beside the least possible, and whether it leaks.

        Takes the options of jxfer train but --regularise, --adapt, --loss.class-weights,
        --augment.mixup, --augment.cutmix, --accumulate, --ema-decay and --cache.mode: the audit is
        of the plain step on images. It needs none. Compiles the step of each phase and the same
        step written by hand on what trains alone, and takes three steps of both, on noise.

        GFLOP and MiB are one device's, a step. Forward and backward count the convolutions and
        matrix products of a group's kernels; the step counts all, as the compiler does. Norms run
        on stored averages (frozen), by the batch under frozen parameters (adapt), or by the batch
        (train). Exit code 1 when a plan leaks.

        Args:
          config: what to audit. Without weights, random values stand for pretrained ones.
          classes: Classes of the head where no --data.source names them; 10 unless given.
          largest_batch: Instead of the audit, find the largest batch whose step fits into the
            device's memory in every phase, by compiling; --batch-size is the first that is tried.
            Takes --accumulate and --ema-decay, too.
          json: Print one JSON object.
        """
        pretrained, plans = plan_audit(config, classes, largest_batch)
        if largest_batch:
            limit = memory.limit_bytes()
            if limit is None:
                kind = jax.local_devices()[0].device_kind
                raise UserError(f"--largest-batch: {kind} does not tell how much memory it has")
            found = fit.largest_batch(plans, pretrained.variables, config.batch_size, limit)
            print(text.to_json(dataclasses.asdict(found)) if json else _fit_table(found))
            return 0
        size = config.batch_size // jax.device_count()
        audits = [audit(plan, pretrained.variables, size) for plan in plans]
        right = not any(phase.leaks for phase in audits)
        if json:
            phases = [dataclasses.asdict(phase) for phase in audits]
            print(text.to_json({"per_device_batch": size, "phases": phases, "ok": right}))
        else:
            model, devices = pretrained.model, jax.device_count()
            print(
                f"{model.architecture.name} through {model.stages[-1]}, {config.strategy.name}: "
                f"{size} images of {pretrained.preprocessing.size} px a step on each of {devices} "
                f"device{'s' if devices > 1 else ''}, {model.num_classes} classes\n"
            )
            print(_report(audits))
        return 0 if right else 1

    return tyro.cli(run, prog="jxfer audit", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def plan_audit(
    config: TrainConfig, classes: int | None = None, largest_batch: bool = False
) -> tuple[Pretrained, tuple[Plan, ...]]:
    """The model and the plans of its phases.

    Args:
      config: as of a run; `data` may be `NO_DATA`.
      classes: of the head, where there are no data; 10 unless given.
      largest_batch: for `fit`, which compares with no least step.

    Raises:
      UserError: the classes are given twice, or are too few; an option that the least step does not
        have; as `set_up`.
    """
    parallel.check_batch(config.batch_size, config.accumulate)
    left_out = {
        "--regularise": config.regularise != RegulariseConfig(),
        "--adapt": config.adapt.acts,
        "--loss.class-weights": config.loss.class_weights != "none",
        "--augment.mixup": config.augment.mixup != 0,
        "--augment.cutmix": config.augment.cutmix != 0,
        "--accumulate": config.accumulate != 1 and not largest_batch,
        "--cache.mode": config.cache.is_explicit,
        "--ema-decay": config.ema_decay is not None and not largest_batch,
    }
    for option, given in left_out.items():
        if given:
            raise UserError(f"{option}: the audit is of the plain step on images; leave it out")
    if config.data != NO_DATA:
        if classes is not None:
            raise UserError("--classes and --data.source both say how many; leave one out")
        train = screen.load_splits(config.data).train
        names, examples = train.class_names, len(train)
    else:
        count = 10 if classes is None else classes
        if count < 2:
            raise UserError(f"--classes {count}: it must be at least 2")
        names, examples = tuple(map(str, range(count))), _EXAMPLES
    steps = evaluation_steps(config, examples)[-1]
    steps_per_epoch = examples / config.batch_size
    if config.model.weights is not None:
        return set_up(config, names, steps, steps_per_epoch)
    pretrained = load(config, names)
    if config.strategy.name != "scratch":
        pretrained = pretrained.as_if_loaded()
    return pretrained, make_plans(config, pretrained, steps, steps_per_epoch)


def group_rows(phase: Audit) -> list[tuple[str, ...]]:
    """A row for each group of a phase, under `GROUP_COLUMNS`."""
    return [
        (
            phase.phase,
            group.label,
            f"{group.parameters:,}",
            f"{group.optimizer_bytes:,}",
            *group.norms.cells(),
            f"{group.forward_flops / 1e9:.4g}",
            f"{group.backward_flops / 1e9:.4g}",
        )
        for group in phase.groups
    ]


def step_row(phase: Audit) -> tuple[str, ...]:
    """The compiled step of a phase beside the least, under `STEP_COLUMNS`."""
    both = (phase.step, phase.least)
    return (
        phase.phase,
        *(f"{program.flops / 1e9:.4g}" for program in both),
        *(f"{program.temporary_bytes / 2**20:.4g}" for program in both),
        *(f"{program.optimizer_bytes:,}" for program in both),
    )


def _fit_table(found: Fit) -> str:
    refused = "more" if found.next_bytes is None else f"{found.next_bytes / 1e9:.4g}"
    rows = [
        ("phase", "batch size", "GB", "next", "GB", "limit, GB"),
        (
            found.phase,
            str(found.batch_size),
            f"{found.bytes / 1e9:.4g}",
            str(found.next_batch_size),
            refused,
            f"{found.limit_bytes / 1e9:.4g}",
        ),
    ]
    return text.table(rows)


def _report(audits: Sequence[Audit]) -> str:
    groups = [GROUP_COLUMNS, *(row for phase in audits for row in group_rows(phase))]
    steps = [STEP_COLUMNS, *map(step_row, audits)]
    leaks = [f"leak in {phase.phase}: {leak}" for phase in audits for leak in phase.leaks]
    return "\n".join([text.table(groups), "", text.table(steps), "", *(leaks or ["no leak"])])
