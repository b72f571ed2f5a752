"""From a config to a model and its starting variables: the one place where weights come from.

After `weights` and `transplant` in the flow. The ladder is short: what `weights` names, or random
weights of `arch`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jxfer import trees
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.trees import Tree
from jxfer.zoo import weights
from jxfer.zoo.card import Card
from jxfer.zoo.report import Report
from jxfer.zoo.reuse import fresh_parts
from jxfer.zoo.transplant import transplant


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it starts from."""

    weights: str | None = None
    """A zoo entry, a run folder, timm/NAME, hf:OWNER/NAME, torchvision:NAME, or a weight file."""
    arch: str | None = None
    """Architecture for random weights, for a plain weight file, or to re-use stages in; other
    weights know theirs."""
    through: str | None = None
    """Last stage to build, such as stage3; the head sits on top of it."""
    head: Literal["new", "keep"] = "new"
    """new: a fresh classifier; keep: the entry's own, for the very same classes."""
    image_size: int | None = None
    """Side of the input in pixels; the weights' own unless given."""
    classifier: HeadConfig = HeadConfig()
    """Form of a new head; one that is kept has its own."""
    reuse: tuple[str, ...] = ()
    """Stages to take from the weights, such as stem stage1, as far as they fit; all else is new."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its starting variables and all that travels with them."""

    model: registry.Model
    variables: Tree
    """`{"params": ..., "batch_stats": ...}`, host arrays."""
    preprocessing: Preprocessing
    report: Report
    card: Card | None
    """The card of the weights, or of the entry that only gave the architecture."""

    @property
    def folded(self) -> bool:
        """Whether the loaded norms were folded into the convolutions."""
        return bool(self.report.loaded and self.card and self.card.batchnorm == "folded")

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parts of the backbone that hold new values, such as `stage3` or `stage1/block2`."""
        return fresh_parts(self.report)


def create_model(
    config: ModelConfig,
    class_names: Sequence[str],
    *,
    seed: int = 0,
    scratch: bool = False,
    sync_axis: str | None = None,
    zoo: str | None = None,
) -> Pretrained:
    """Builds the model and fills it.

    Args:
      config: the network and where its weights come from.
      class_names: classes of the head, in order.
      seed: of the random leaves.
      scratch: take only architecture and preprocessing from `config.weights`.
      sync_axis: mesh axis over which BatchNorm synchronises; None keeps it per device.
      zoo: a folder of zoo entries that is searched first.

    Raises:
      UserError: nothing or two different things say which network; unknown weights, architecture
        or stage; weights that do not fit.
    """
    card, source = None, None
    left_behind: tuple[str, ...] = ()
    if config.weights is not None:
        # With re-use, arch is that of the target.
        found = weights.load(config.weights, arch=None if config.reuse else config.arch, zoo=zoo)
        if config.head == "keep":
            found.check_named()
        card, source, left_behind = found.card, found.variables, found.report.dropped
        if config.arch not in (None, card.arch) and not config.reuse:
            raise UserError(
                f"--model.arch {config.arch}, but {config.weights} is a {card.arch}; leave one "
                "out, or name the stages to take over with --model.reuse"
            )
    if config.reuse and (card is None or scratch):
        raise UserError(
            "--model.reuse takes stages from weights: give --model.weights, and no scratch"
        )
    arch = config.arch or (card.arch if card else None)
    if arch is None:
        raise UserError("which network? give --model.weights, or --model.arch for random weights")
    through = config.through or (card.through if card and not config.reuse else None)
    head = config.classifier
    if config.head == "keep" and card is not None:
        if head not in (HeadConfig(), card.head):
            raise UserError(
                "--model.classifier is the form of a new head; leave it out with --model.head keep"
            )
        head = card.head
    model = registry.create(arch, len(class_names), through=through, head=head, sync_axis=sync_axis)
    preprocessing = card.preprocessing if card else model.architecture.preprocessing
    if config.image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, size=config.image_size)
    model.architecture.check_size(preprocessing.size)
    if card is not None and source is not None and not scratch:
        variables, report = transplant(
            model,
            card,
            source,
            head=config.head,
            class_names=tuple(class_names),
            seed=seed,
            reuse=config.reuse,
        )
        report = dataclasses.replace(report, dropped=(*left_behind, *report.dropped))
        return Pretrained(model, variables, preprocessing, report, card)
    if config.head == "keep":
        raise UserError("--model.head keep needs pretrained weights; scratch has none")
    variables = model.init(seed)
    dropped = (*left_behind, *trees.flatten(source)) if source is not None else ()
    report = Report(loaded=(), reinitialised=tuple(trees.flatten(variables)), dropped=dropped)
    return Pretrained(model, variables, preprocessing, report, card)
