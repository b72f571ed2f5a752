"""From a config to a model and its starting variables: the one place where weights come from.

After `weights` and `transplant` in the flow. The ladder is short: what `weights` names, or random
weights of `arch`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jxfer import choices, trees
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

SOURCE_HEAD = "source_head"
"""Name among the parameters of the weights' own classifier where it trains beside a new one."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it starts from."""

    weights: str | None = None
    """A zoo entry, a run folder, timm/NAME, hf:OWNER/NAME, torchvision:NAME, or a weight file; a
    folder or file may be gs://."""
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

    def __post_init__(self) -> None:
        choices.check(self, "--model.")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--model.image-size {self.image_size}: it must be at least 1 pixel")


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
    source_head: Tree = dataclasses.field(default_factory=dict)
    """The classifier that a new head replaced: `kernel` [C, K] and `bias` [K] on `pooled`. Empty
    where the weights have none of that form on the last stage that is built."""

    def with_source_head(self) -> "Pretrained":
        """With the classifier that the new head replaced as the parameters `source_head`.

        Raises:
          UserError: there is none.
        """
        if not self.source_head:
            raise UserError(
                "--regularise.co-tuning needs the weights' own classifier beside a new head: a "
                "linear one, of named classes, on the last stage that is built; leave it out"
            )
        params = self.variables["params"] | {SOURCE_HEAD: self.source_head}
        ours, theirs = (
            {f"params/{head}/{leaf}" for leaf in self.source_head}
            for head in (SOURCE_HEAD, "head/linear")
        )
        report = dataclasses.replace(
            self.report,
            loaded=tuple(sorted({*self.report.loaded, *ours})),
            dropped=tuple(path for path in self.report.dropped if path not in theirs),
        )
        return dataclasses.replace(
            self, variables=self.variables | {"params": params}, report=report
        )

    def as_source(self) -> tuple[registry.Model, Tree]:
        """The network as the weights have it, with `source_head` as its head, and its variables."""
        head = self.source_head
        params = {name: self.variables["params"][name] for name in self.model.stages}
        model = registry.create(
            self.model.architecture.name, len(head["bias"]), through=self.model.stages[-1]
        )
        return model, self.variables | {"params": params | {"head": {"linear": head}}}

    def as_if_loaded(self, *, head: bool = False) -> "Pretrained":
        """Random values stand for pretrained ones: all but the head count as loaded.

        Args:
          head: the head does too, as one that is kept.
        """
        paths = self.report.reinitialised
        new = tuple(path for path in paths if path.split("/")[1] == "head" and not head)
        loaded = tuple(path for path in paths if path not in new)
        return dataclasses.replace(self, report=Report(loaded, new, ()))

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
        kept = {} if config.reuse or config.head == "keep" else _classifier(model, card, source)
        return Pretrained(model, variables, preprocessing, report, card, kept)
    if config.head == "keep":
        raise UserError("--model.head keep needs pretrained weights; scratch has none")
    variables = model.init(seed)
    dropped = (*left_behind, *trees.flatten(source)) if source is not None else ()
    report = Report(loaded=(), reinitialised=tuple(trees.flatten(variables)), dropped=dropped)
    return Pretrained(model, variables, preprocessing, report, card)


def _classifier(model: registry.Model, card: Card, source: Tree) -> Tree:
    """See `Pretrained.source_head`."""
    last = card.through or model.architecture.stages[-1]
    if not card.class_names or card.head.kind != "linear" or last != model.stages[-1]:
        return {}
    return source["params"]["head"]["linear"]
