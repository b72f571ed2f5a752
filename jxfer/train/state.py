"""The state of training, and its start: init -> load -> labels -> optimizer, in that order."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxfer import trees
from jxfer.data.readers import Source
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.losses.classification import LossConfig, balanced_weights
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models.network import POOLED
from jxfer.models.registry import Model
from jxfer.train import regularisers
from jxfer.train.config import TrainConfig
from jxfer.train.parallel import AXIS
from jxfer.train.regularisers import Regularisers
from jxfer.transfer import labels as label_rules
from jxfer.transfer import optimizer, strategy
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.trees import Tree
from jxfer.zoo.pretrained import SOURCE_HEAD, Pretrained, create_model

_SOURCE_LABEL = f"{label_rules.LOW_LR}/{SOURCE_HEAD}"
"""A label of its own, since the head begins to train with the backbone, in whichever phase."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: jax.Array
    """Steps taken, int32 scalar."""
    params: Tree
    """Every parameter, frozen ones too, float32."""
    batch_stats: Tree
    """Running mean and variance of every norm layer, float32."""
    opt_state: optax.OptState
    """Of the trainable leaves alone."""
    seed: jax.Array
    """Of the dropout masks, uint32 scalar; stays what it is. Data, so that runs that differ by
    their seed share one program."""

    @property
    def variables(self) -> Tree:
        """Of the network alone, as evaluation and the exported model have it."""
        params = {name: part for name, part in self.params.items() if name != SOURCE_HEAD}
        return {"params": params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that fixes the compiled train step of a phase: equal plans share one program."""

    model: Model
    preprocessing: Preprocessing
    phase: strategy.Phase
    optimizer: OptimizerConfig
    loss: LossConfig
    total_steps: int
    """Of this phase."""
    steps_per_epoch: float
    folded: bool
    """The norms were folded into the convolutions: the identity plus a bias."""
    class_weights: tuple[float, ...] | None = None
    """Of the loss, by label; None where all weigh the same."""
    regularise: RegulariseConfig = RegulariseConfig()
    pretrained: frozenset[str] = frozenset()
    """Paths of the parameters that were loaded; read by the regularisers."""
    source_head: tuple[int, int] | None = None
    """For Co-Tuning: shape [C, K] of the source's head, which trains beside the new one."""

    @functools.cached_property
    def shapes(self) -> Tree:
        """Of every parameter, the source's head among them."""
        shapes = dict(self.model.shapes()["params"])
        if self.source_head is not None:
            kernel = jax.ShapeDtypeStruct(self.source_head, jnp.float32)
            bias = jax.ShapeDtypeStruct(self.source_head[1:], jnp.float32)
            shapes[SOURCE_HEAD] = {"kernel": kernel, "bias": bias}
        return shapes

    @functools.cached_property
    def labels(self) -> Tree:
        """A label for every parameter.

        The source's head moves as the backbone does, and where it does: alone it changes nothing.
        """
        labels = label_rules.label_tree(self.model.shapes()["params"], self.phase.rules)
        if self.source_head is not None:
            moving = {path.partition("/")[0] for path in label_rules.trainable(labels)}
            moves = not moving.isdisjoint(self.model.stages)
            label = _SOURCE_LABEL if moves else label_rules.FROZEN
            labels[SOURCE_HEAD] = {"kernel": label, "bias": label}
        return labels

    @functools.cached_property
    def regularisers(self) -> Regularisers:
        """What pulls the network to its start in this phase."""
        return Regularisers(self.regularise, self.model, self.pretrained, self.trainable)

    @functools.cached_property
    def trainable(self) -> frozenset[str]:
        """Paths of the parameters that move."""
        return label_rules.trainable(self.labels)

    @functools.cached_property
    def train_layers(self) -> frozenset[str]:
        """Paths of the norm layers that normalise by the batch and the dropout layers that drop.

        Folded norms never do: the moments of a batch would rescale every feature.
        """
        return label_rules.train_layers(
            self.labels,
            () if self.folded else self.model.norm_paths(),
            self.model.dropout_paths(),
            frozen_norms=self.phase.frozen_norms,
            trainable_norms=self.phase.trainable_norms,
        )

    @functools.cached_property
    def drops(self) -> bool:
        """Whether any dropout layer drops, so that the step needs random bits."""
        return not self.train_layers.isdisjoint(self.model.dropout_paths())

    @functools.cached_property
    def prefix(self) -> str | None:
        """The last output that no step of this phase changes, a stage or `pooled`; None: none.

        Up to there every parameter is frozen, and every norm runs on its stored averages.
        """
        changing = {path.partition("/")[0] for path in self.trainable | self.train_layers}
        stages = list(itertools.takewhile(lambda s: s not in changing, self.model.stages))
        if len(stages) == len(self.model.stages) and self.model.head.kind != "conv":
            return POOLED
        return stages[-1] if stages else None

    @functools.cached_property
    def rates(self) -> dict[str, optax.Schedule]:
        """Learning rate by step for each label that trains."""
        moving = {label for path, label in trees.flatten(self.labels).items() if self.moves(path)}
        rates = optimizer.schedules(
            self.optimizer, self.total_steps, self.steps_per_epoch, self.model.stages
        )
        rates[_SOURCE_LABEL] = rates[label_rules.LOW_LR]
        return {label: rates[label] for label in sorted(moving)}

    @functools.cached_property
    def peaks(self) -> dict[str, float]:
        """Peak learning rate of each label that may train."""
        peaks = self.optimizer.peaks(self.model.stages)
        return {_SOURCE_LABEL: peaks[label_rules.LOW_LR], **peaks}

    @functools.cached_property
    def transform(self) -> optax.GradientTransformation:
        """The optimizer, over the trainable leaves alone."""
        moving, _ = trees.split(self.labels, self.moves)
        return optimizer.build(self.optimizer, moving, self.rates)

    def moves(self, path: str) -> bool:
        """Whether a parameter moves."""
        return path in self.trainable

    def adapts(self, path: str) -> bool:
        """Whether a statistic, such as `stem/norm/mean`, moves."""
        return path.rpartition("/")[0] in self.train_layers

    def initial_state(self, variables: Tree, seed: int = 0) -> TrainState:
        """The state before the first step; `seed` is that of the dropout masks."""
        moving, _ = trees.split(variables["params"], self.moves)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),  # stored trees have no empty ones
            opt_state=_initial_opt_state(self, moving),
            seed=jnp.asarray(seed % 2**32, jnp.uint32),
        )

    def reference(self, variables: Tree) -> Tree:
        """What the step's regularisers need of `variables`, those that were loaded."""
        return self.regularisers.reference(variables, self.adapts)

    def frozen_leaves(self, state: TrainState) -> dict[str, np.ndarray]:
        """The leaves that training must not change, statistics included."""
        _, params = trees.split(state.params, self.moves)
        _, batch_stats = trees.split(state.batch_stats, self.adapts)
        return trees.flatten({"params": params, "batch_stats": batch_stats})


@functools.partial(jax.jit, static_argnums=0)
def _initial_opt_state(plan: Plan, moving: Tree) -> optax.OptState:
    return plan.transform.init(moving)


def set_up(
    config: TrainConfig,
    class_names: Sequence[str],
    total_steps: int,
    steps_per_epoch: float,
    train: Source | None = None,
) -> tuple[Pretrained, tuple[Plan, ...]]:
    """Loads the model and plans its training, phase by phase.

    Args:
      train: the training split; only class weights need it, for its labels.

    Raises:
      UserError: a strategy that transfers has no weights to start from; an option has nothing to
        act on; nothing trains, or a new parameter does not; as `create_model`, `strategy.phases`,
        `strategy.phase_steps`, `labels.label_tree`, `optimizer.schedule`,
        `classification.balanced_weights`.
      ValueError: the config asks for class weights, and there is no `train`.
    """
    scratch = config.strategy.name == "scratch"
    if config.model.arch and not config.model.weights and not scratch:
        raise UserError(
            f"{config.strategy.name} starts from pretrained weights: give --model.weights, "
            "or --strategy.name scratch for random ones"
        )
    pretrained = create_model(
        config.model,
        class_names,
        seed=config.seed,
        scratch=scratch,
        sync_axis=AXIS if config.sync_bn else None,
        zoo=config.zoo,
    )
    if config.regularise.co_tuning:
        pretrained = pretrained.with_source_head()
    phases = strategy.phases(
        config.strategy,
        pretrained.model.stages,
        pretrained.fresh,
        per_stage=config.optimizer.per_stage,
    )
    lengths = strategy.phase_steps(phases, config.epochs, total_steps, steps_per_epoch)
    class_weights = None
    if config.loss.class_weights == "balanced":
        if train is None:
            raise ValueError("class weights need the training split")
        class_weights = balanced_weights(train.labels, class_names)
    prefix = "params/"
    loaded = frozenset(
        path.removeprefix(prefix) for path in pretrained.report.loaded if path.startswith(prefix)
    )
    source_head = pretrained.variables["params"].get(SOURCE_HEAD)
    plans = tuple(
        Plan(
            model=pretrained.model,
            preprocessing=pretrained.preprocessing,
            phase=phase,
            optimizer=config.optimizer,
            loss=config.loss,
            total_steps=steps,
            steps_per_epoch=steps_per_epoch,
            folded=pretrained.folded,
            class_weights=class_weights,
            regularise=config.regularise,
            pretrained=loaded,
            source_head=source_head["kernel"].shape if source_head else None,
        )
        for phase, steps in zip(phases, lengths, strict=True)
    )
    _check_plans(config, pretrained, plans)
    return pretrained, plans


def _check_plans(config: TrainConfig, pretrained: Pretrained, plans: Sequence[Plan]) -> None:
    name, stages = config.strategy.name, pretrained.model.stages
    trained = frozenset[str]().union(*(plan.trainable for plan in plans))
    for path in pretrained.report.reinitialised:
        collection, _, leaf = path.partition("/")
        if collection == "params" and leaf not in trained:
            raise UserError(f"{name} freezes {leaf} at its new, random value; let it train")
    if not trained:
        raise UserError(f"--strategy.name {name}: every parameter is frozen; let some train")
    if config.strategy.frozen_norms == "adapt" and pretrained.folded:
        raise UserError(
            "--strategy.frozen-norms adapt: the norms of these weights are folded into the "
            "convolutions and have no statistics to adapt; leave it out"
        )
    regularisers.check([plan.regularisers for plan in plans], name, config.batch_size)
    labels = {label for plan in plans for label in trees.flatten(plan.labels).values()}
    if config.optimizer.layer_decay is not None and labels.isdisjoint(_by_stage(stages)):
        raise UserError(
            f"--optimizer.layer-decay: no stage learns at the backbone's rate under {name}; "
            "leave it out"
        )
    for stage in config.optimizer.rates_by_stage():
        if stage not in stages:
            raise UserError(
                f"--optimizer.stage-lrs {stage}: no such stage; use {', '.join(stages)}"
            )
        if labels.isdisjoint(_by_stage([stage])):
            raise UserError(
                f"--optimizer.stage-lrs {stage}: it does not learn at the backbone's rate under "
                f"{name}; leave it out"
            )


def _by_stage(stages: Sequence[str]) -> set[str]:
    return {f"{label_rules.LOW_LR}/{stage}" for stage in stages}
