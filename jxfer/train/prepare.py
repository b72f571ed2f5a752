"""A config -> all that a run takes its steps with: data, model, phases, judge.

Before `loop` in the flow. Nothing is written here.
"""

import dataclasses
import pathlib
from typing import Any

from jxfer import trees
from jxfer.data import kept, screen
from jxfer.data.sources import Splits
from jxfer.data.targets import Target
from jxfer.train import parallel, prefix_choice, program
from jxfer.train.config import TrainConfig
from jxfer.train.feed import fingerprint, load_target
from jxfer.train.judge import Judge
from jxfer.train.phases import Course
from jxfer.train.plans import set_up
from jxfer.train.selection import Best, evaluation_steps, out_of_patience
from jxfer.zoo.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the summary."""

    config: TrainConfig
    folder: pathlib.Path
    splits: Splits
    pretrained: Pretrained
    course: Course
    choices: list[prefix_choice.Choice]
    """What each phase caches."""
    images: str
    """Which decoded images stay in memory, in words; "" where no step reads any again."""
    evaluate_at: list[int]
    target: Target | None
    """Of a run that adapts."""
    judge: Judge
    seconds: dict[str, float]
    commit: str | None
    quiet: bool
    profile: bool

    def is_over(self, best: Best, step: int) -> bool:
        """Whether that was the last step, planned or for want of patience."""
        before = self.course.start(len(self.course.plans) - 1)
        return step == self.course.steps or out_of_patience(
            self.config.patience, self.evaluate_at, best, step, before
        )

    def fingerprint(self) -> dict[str, Any]:
        """JSON values by which a run that goes on knows its data again."""
        return fingerprint(self.splits, self.target)

    def weights(self) -> str:
        """A hash of what the run starts from."""
        initial = self.course.initial
        return trees.sha256({"params": initial.params, "batch_stats": initial.batch_stats})


def prepare(config: TrainConfig, folder: pathlib.Path, quiet: bool, profile: bool) -> Run:
    """Opens the data, loads the model and plans the phases.

    Raises:
      UserError: what a person can cause, in one line.
    """
    commit = program.commit()  # of the code that is about to run, whatever is committed meanwhile
    parallel.check_batch(config.batch_size, config.accumulate)
    splits = screen.load_splits(config.data)
    evaluate_at = evaluation_steps(config, len(splits.train))
    pretrained, plans = set_up(
        config,
        splits.train.class_names,
        total_steps=evaluate_at[-1],
        steps_per_epoch=len(splits.train) / config.batch_size,
        train=splits.train,
    )
    target = load_target(config, splits.train.class_names)
    choices = prefix_choice.choose_all(plans, config, splits, target.train if target else None)
    images = ""
    if config.epochs > 1 and any(choice.output is None for choice in choices):
        splits, images = kept.keep_images(
            splits, pretrained.preprocessing, config.augment, config.cache.images_gb
        )
    return Run(
        config=config,
        folder=folder,
        splits=splits,
        pretrained=pretrained,
        course=Course(plans, plans[0].initial_state(pretrained.variables, config.seed)),
        choices=choices,
        images=images,
        evaluate_at=evaluate_at,
        target=target,
        judge=Judge(config, splits, pretrained, target),
        seconds=dict.fromkeys(("compile", "data_wait", "step", "eval", "prefix"), 0.0),
        commit=commit,
        quiet=quiet,
        profile=profile,
    )
