"""The audit of every strategy on a ResNet-18: writes docs/audit.md.

Command: `python -m scripts.audit_table` (half an hour on 2 cores)
Random values stand for pretrained ones; what a step costs does not depend on them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import tyro

from jxfer.commands import audit as command
from jxfer.train.audit import Audit, audit
from jxfer.train.config import TrainConfig
from jxfer.train.state import Plan
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

INTRODUCTION = """# What each strategy costs a step

Written by `python -m scripts.audit_table`: {arch} on one device ({backend}), {batch} images of
{size} px a step, 10 classes, SGD with momentum. `jxfer audit` prints the same of other trainings;
its exit code is 1 when a plan leaks.

"""
GROUPS = """## The groups

Forward and backward count the convolutions and matrix products of a group's kernels, so a group of
scales and biases has none. The backward pass of a frozen group is the way to what trains below it.
Norms run on stored averages (frozen), by the batch under frozen parameters (adapt), or by the batch
(train).

"""
STEPS = """## The compiled steps

Beside the least possible: the same step written by hand on what trains alone. FLOPs are counted by
the compiler, norms and activations too.

"""

STRATEGIES: dict[str, tuple[StrategyConfig, OptimizerConfig]] = {
    "scratch": (StrategyConfig("scratch"), OptimizerConfig()),
    "linear_probe": (StrategyConfig("linear_probe"), OptimizerConfig()),
    "linear_probe, norms adapt": (
        StrategyConfig("linear_probe", frozen_norms="adapt"),
        OptimizerConfig(),
    ),
    **{
        f"partial, {stage}": (StrategyConfig("partial", freeze_through=stage), OptimizerConfig())
        for stage in ("stage4", "stage3", "stage2", "stage1", "stem")
    },
    "full": (StrategyConfig("full"), OptimizerConfig()),
    "full, norms frozen": (StrategyConfig("full", trainable_norms="frozen"), OptimizerConfig()),
    "full, layer decay 0.5": (StrategyConfig("full"), OptimizerConfig(layer_decay=0.5)),
    "surgical, stage1": (StrategyConfig("surgical", stages=("stage1",)), OptimizerConfig()),
    "bn_only": (StrategyConfig("bn_only"), OptimizerConfig()),
    "bitfit": (StrategyConfig("bitfit"), OptimizerConfig()),
    "lp_ft": (StrategyConfig("lp_ft"), OptimizerConfig()),
    "gradual": (StrategyConfig("gradual"), OptimizerConfig()),
}


def main(
    out: pathlib.Path = pathlib.Path("docs/audit.md"),
    model: ModelConfig = ModelConfig(arch="resnet18"),
    batch_size: int = 16,
) -> None:
    """Writes the table.

    Args:
      out: The file.
      model: What to audit.
      batch_size: Images a step, over all devices.
    """
    groups: list[tuple[str, ...]] = [("strategy", *command.GROUP_COLUMNS)]
    steps: list[tuple[str, ...]] = [("strategy", *command.STEP_COLUMNS, "leaks")]
    done: dict[Plan, Audit] = {}
    for name, (strategy, optimizer) in STRATEGIES.items():
        config = TrainConfig(command.NO_DATA, model, strategy, optimizer, batch_size=batch_size)
        pretrained, plans = command.plan_audit(config)
        for plan in plans:
            # Phases that differ in name and length alone have one program.
            same = dataclasses.replace(plan.phase, name="", epochs=None)
            key = dataclasses.replace(plan, phase=same, total_steps=1000)
            if key not in done:
                size = batch_size // jax.device_count()
                done[key] = audit(key, pretrained.variables, size)
                jax.clear_caches()
            phase = dataclasses.replace(done[key], phase=plan.phase.name)
            groups += [(name, *row) for row in command.group_rows(phase)]
            steps.append((name, *command.step_row(phase), "; ".join(phase.leaks) or "none"))
            print(*steps[-1], sep=" | ", flush=True)
    introduction = INTRODUCTION.format(
        arch=pretrained.model.architecture.name,
        backend=jax.default_backend(),
        batch=batch_size,
        size=pretrained.preprocessing.size,
    )
    out.write_text(
        introduction + GROUPS + _markdown(groups) + "\n" + STEPS + _markdown(steps),
        encoding="utf-8",
    )


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    header, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join([header, "|---" * len(rows[0]) + "|\n", *body])


if __name__ == "__main__":
    tyro.cli(main)
