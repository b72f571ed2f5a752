"""The state of training, and its start: init -> load -> labels -> optimizer, in that order."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxfer import trees
from jxfer.train.config import TrainConfig
from jxfer.train.parallel import AXIS
from jxfer.transfer import labels as label_rules
from jxfer.transfer import optimizer, strategy
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


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that is fixed once a phase starts."""

    pretrained: Pretrained
    phase: strategy.Phase
    labels: Tree
    """A label for every parameter."""
    trainable: frozenset[str]
    """Paths of the parameters that move."""
    train_norms: frozenset[str]
    """Paths of the norm layers that normalise by the batch."""
    rates: dict[str, optax.Schedule]
    """Learning rate by step for each label."""
    transform: optax.GradientTransformation

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        variables = self.pretrained.variables
        moving, _ = trees.split(variables["params"], self.trainable.__contains__)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=jax.jit(self.transform.init)(moving),
        )

    def frozen_leaves(self, params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
        """The leaves that training must not change, statistics included."""
        _, frozen = trees.split(params, self.trainable.__contains__)
        _, stored = trees.split(
            batch_stats, lambda path: path.rpartition("/")[0] in self.train_norms
        )
        return trees.flatten({"params": frozen, "batch_stats": stored})


def set_up(
    config: TrainConfig, class_names: Sequence[str], total_steps: int, steps_per_epoch: float
) -> Setup:
    """Builds everything that the first step needs.

    Raises:
      UserError: as `create_model`, `strategy.phases`, `labels.label_tree`, `optimizer.schedule`.
    """
    pretrained = create_model(
        config.model,
        class_names,
        seed=config.seed,
        scratch=config.strategy.name == "scratch",
        sync_axis=AXIS if config.sync_bn else None,
        zoo=config.zoo,
    )
    (phase,) = strategy.phases(config.strategy, pretrained.model.stages)
    labels = label_rules.label_tree(pretrained.variables["params"], phase.rules)
    trainable = label_rules.trainable(labels)
    train_norms = label_rules.train_norms(labels, pretrained.model.norm_paths())
    if pretrained.report.loaded and pretrained.card and pretrained.card.batchnorm == "folded":
        # A folded norm is the identity plus a bias: batch moments would rescale every feature.
        train_norms = frozenset()
    pruned, _ = trees.split(labels, trainable.__contains__)
    moving = set(trees.flatten(pruned).values())
    schedules = optimizer.schedules(config.optimizer, total_steps, steps_per_epoch)
    rates = {label: schedules[label] for label in sorted(moving)}
    return Setup(
        pretrained=pretrained,
        phase=phase,
        labels=labels,
        trainable=trainable,
        train_norms=train_norms,
        rates=rates,
        transform=optimizer.build(config.optimizer, pruned, rates),
    )
