"""The state of training, and the plan of a phase: all that fixes its compiled step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jxfer import trees
from jxfer.data.transforms import Preprocessing
from jxfer.losses.adaptation import AdaptConfig
from jxfer.losses.classification import LossConfig
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models.network import POOLED
from jxfer.models.registry import Model
from jxfer.train.adaptation import DOMAIN_HEAD, Adaptation
from jxfer.train.regularisers import Regularisers
from jxfer.transfer import labels as label_rules
from jxfer.transfer import optimizer, strategy
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.trees import Tree
from jxfer.zoo.pretrained import SOURCE_HEAD

_SOURCE_LABEL = f"{label_rules.LOW_LR}/{SOURCE_HEAD}"
_DOMAIN_LABEL = f"{label_rules.HEAD}/{DOMAIN_HEAD}"
"""Labels of their own, since these heads begin to train with the backbone, in whichever phase."""


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
    ema: Tree = dataclasses.field(default_factory=dict)
    """Moving averages of `Plan.training_leaves`, float32; empty where there are none."""

    @property
    def variables(self) -> Tree:
        """Of the network alone, as evaluation and the exported model have it.

        Averages where `ema` holds them.
        """
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        if self.ema:
            variables = trees.unflatten(trees.flatten(variables) | trees.flatten(self.ema))
        params = dict(variables["params"])
        for name in (SOURCE_HEAD, DOMAIN_HEAD):
            params.pop(name, None)
        return variables | {"params": params}


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that fixes the train step of a phase; plans that differ in rates share a program."""

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
    accumulate: int = 1
    """Micro-batches of each device and step."""
    ema_decay: float | None = None
    """None keeps no averages."""
    adapt: AdaptConfig = AdaptConfig()
    ramp: tuple[int, int] = (0, 1)
    """See `Adaptation.ramp`; read by its adversarial methods alone."""

    @functools.cached_property
    def shapes(self) -> Tree:
        """Of every parameter, those of the heads that only train among them."""
        shapes = dict(self.model.shapes()["params"])
        if self.adaptation.head_shapes:
            shapes[DOMAIN_HEAD] = self.adaptation.head_shapes
        if self.source_head is not None:
            kernel = jax.ShapeDtypeStruct(self.source_head, jnp.float32)
            bias = jax.ShapeDtypeStruct(self.source_head[1:], jnp.float32)
            shapes[SOURCE_HEAD] = {"kernel": kernel, "bias": bias}
        return shapes

    @functools.cached_property
    def labels(self) -> Tree:
        """A label for every parameter.

        The source's head and the domain classifier move where the backbone does: alone they change
        nothing. The one moves as the backbone does, the other as a new head.
        """
        labels = dict(self._network_labels)
        moving = {path.partition("/")[0] for path in label_rules.trainable(labels)}
        moves = not moving.isdisjoint(self.model.stages)
        if self.source_head is not None:
            label = _SOURCE_LABEL if moves else label_rules.FROZEN
            labels[SOURCE_HEAD] = {"kernel": label, "bias": label}
        if self.adaptation.head_shapes:
            label = _DOMAIN_LABEL if moves else label_rules.FROZEN
            labels[DOMAIN_HEAD] = jax.tree.map(lambda _: label, self.adaptation.head_shapes)
        return labels

    @functools.cached_property
    def _network_labels(self) -> Tree:
        return label_rules.label_tree(self.model.shapes()["params"], self.phase.rules)

    @functools.cached_property
    def adaptation(self) -> Adaptation:
        """What aligns the domains in this phase."""
        trainable = label_rules.trainable(self._network_labels)
        return Adaptation(self.adapt, self.model, trainable, self.ramp)

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
        rates = self.schedules()
        rates |= {label: rates[label_rules.base(label)] for label in (_SOURCE_LABEL, _DOMAIN_LABEL)}
        return {label: rates[label] for label in sorted(moving)}

    @functools.cached_property
    def peaks(self) -> dict[str, float]:
        """Peak learning rate of each label that may train."""
        peaks = self.optimizer.peaks(self.model.stages)
        heads = {label: peaks[label_rules.base(label)] for label in (_SOURCE_LABEL, _DOMAIN_LABEL)}
        return heads | peaks

    @functools.cached_property
    def rate_table(self) -> dict[str, np.ndarray]:
        """`rates` at every step of the phase, float32 [total_steps]."""
        # All steps at once: a schedule called step by step would queue on the device.
        steps = np.arange(self.total_steps)
        return {
            label: np.asarray(jax.vmap(lambda step, rate=rate: jnp.float32(rate(step)))(steps))
            for label, rate in self.rates.items()
        }

    @functools.cached_property
    def transform(self) -> optax.GradientTransformation:
        """The optimizer, over the trainable leaves alone."""
        return self.transform_at(self.rates)

    def transform_at(self, rates: dict[str, optax.Schedule]) -> optax.GradientTransformation:
        """`transform` with other rates for the same labels."""
        moving, _ = trees.split(self.labels, self.moves)
        return optimizer.build(self.optimizer, moving, rates)

    def schedules(self) -> dict[str, optax.Schedule]:
        """Learning rate by step for each label that could train."""
        return optimizer.schedules(
            self.optimizer, self.total_steps, self.steps_per_epoch, self.model.stages
        )

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
            ema=self.training_leaves(variables) if self.ema_decay is not None else {},
        )

    def reference(self, variables: Tree, seed: int = 0) -> Tree:
        """What the step needs and stays the same.

        Args:
          variables: that were loaded.
          seed: of the run, for random projections.
        """
        found = self.regularisers.reference(variables, self.adapts)
        return found | self.adaptation.reference(seed)

    def training_leaves(self, variables: Tree) -> Tree:
        """The leaves that training changes, statistics included, as timm's ModelEmaV3 has them.

        Args:
          variables: no "batch_stats" is the same as empty ones.
        """
        params, _ = trees.split(variables["params"], self.moves)
        batch_stats, _ = trees.split(variables.get("batch_stats", {}), self.adapts)
        return {
            kind: tree for kind, tree in (("params", params), ("batch_stats", batch_stats)) if tree
        }

    def frozen_leaves(self, state: TrainState) -> dict[str, np.ndarray]:
        """The leaves that training must not change, statistics included."""
        _, params = trees.split(state.params, self.moves)
        _, batch_stats = trees.split(state.batch_stats, self.adapts)
        return trees.flatten({"params": params, "batch_stats": batch_stats})


@functools.partial(jax.jit, static_argnums=0)
def _initial_opt_state(plan: Plan, moving: Tree) -> optax.OptState:
    return plan.transform.init(moving)
