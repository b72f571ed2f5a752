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
    """All that fixes the compiled train step, and nothing else: equal plans share one program."""

    model: Model
    preprocessing: Preprocessing
    phase: strategy.Phase
    optimizer: OptimizerConfig
    loss: LossConfig
    total_steps: int
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
        norm_paths = () if self.folded else self.model.norm_paths()
        return label_rules.train_layers(self.labels, norm_paths, self.model.dropout_paths())

    @functools.cached_property
    def drops(self) -> bool:
        """Whether any dropout layer drops, so that the step needs random bits."""
        return not self.train_layers.isdisjoint(self.model.dropout_paths())

    @functools.cached_property
    def rates(self) -> dict[str, optax.Schedule]:
        """Learning rate by step for each label that trains."""
        moving = {label for path, label in trees.flatten(self.labels).items() if self.moves(path)}
        rates = optimizer.schedules(self.optimizer, self.total_steps, self.steps_per_epoch)
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
) -> tuple[Pretrained, Plan]:
    """Loads the model and plans its training.

    Raises:
      UserError: a strategy that transfers has no weights to start from; as `create_model`,
        `strategy.phases`, `labels.label_tree`, `optimizer.schedule`.
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
    (phase,) = strategy.phases(config.strategy, pretrained.model.stages, pretrained.fresh)
    plan = Plan(
        model=pretrained.model,
        preprocessing=pretrained.preprocessing,
        phase=phase,
        optimizer=config.optimizer,
        loss=config.loss,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        folded=pretrained.folded,
    )
    return pretrained, plan
