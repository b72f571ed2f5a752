"""The state of training, and its start: init -> load -> labels -> optimizer, in that order."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxfer import trees
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.losses.classification import LossConfig
from jxfer.models.registry import Model
from jxfer.train.config import TrainConfig
from jxfer.train.parallel import AXIS
from jxfer.transfer import labels as label_rules
from jxfer.transfer import optimizer, strategy
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.trees import Tree
from jxfer.zoo.pretrained import Pretrained, create_model


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

    @functools.cached_property
    def labels(self) -> Tree:
        """A label for every parameter."""
        return label_rules.label_tree(self.model.shapes()["params"], self.phase.rules)

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
    def rates(self) -> dict[str, optax.Schedule]:
        """Learning rate by step for each label that trains."""
        moving = {label for path, label in trees.flatten(self.labels).items() if self.moves(path)}
        rates = optimizer.schedules(
            self.optimizer, self.total_steps, self.steps_per_epoch, self.model.stages
        )
        return {label: rates[label] for label in sorted(moving)}

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

    def frozen_leaves(self, state: TrainState) -> dict[str, np.ndarray]:
        """The leaves that training must not change, statistics included."""
        _, params = trees.split(state.params, self.moves)
        _, batch_stats = trees.split(state.batch_stats, self.adapts)
        return trees.flatten({"params": params, "batch_stats": batch_stats})


@functools.partial(jax.jit, static_argnums=0)
def _initial_opt_state(plan: Plan, moving: Tree) -> optax.OptState:
    return plan.transform.init(moving)


def set_up(
    config: TrainConfig, class_names: Sequence[str], total_steps: int, steps_per_epoch: float
) -> tuple[Pretrained, tuple[Plan, ...]]:
    """Loads the model and plans its training, phase by phase.

    Raises:
      UserError: a strategy that transfers has no weights to start from; an option has nothing to
        act on; nothing trains, or a new parameter does not; as `create_model`, `strategy.phases`,
        `strategy.phase_steps`, `labels.label_tree`, `optimizer.schedule`.
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
    return pretrained, make_plans(config, pretrained, total_steps, steps_per_epoch)


def make_plans(
    config: TrainConfig, pretrained: Pretrained, total_steps: int, steps_per_epoch: float
) -> tuple[Plan, ...]:
    """Plans the training of a model that is loaded, phase by phase; raises as `set_up`."""
    phases = strategy.phases(
        config.strategy,
        pretrained.model.stages,
        pretrained.fresh,
        per_stage=config.optimizer.per_stage,
    )
    lengths = strategy.phase_steps(phases, config.epochs, total_steps, steps_per_epoch)
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
        )
        for phase, steps in zip(phases, lengths, strict=True)
    )
    _check_plans(config, pretrained, plans)
    return plans


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
