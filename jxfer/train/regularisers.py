"""Which regularisers act in a phase, on which leaves and stages, and what they add to the loss.

After `parallel`, before `state`, whose plans hold them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jxfer import choices, trees
from jxfer.errors import UserError
from jxfer.losses import regularise
from jxfer.losses.classification import mixed_loss
from jxfer.losses.regularise import RegulariseConfig
from jxfer.models.registry import Model
from jxfer.train.parallel import AXIS
from jxfer.trees import Tree
from jxfer.zoo.pretrained import SOURCE_HEAD


@dataclasses.dataclass(frozen=True)
class Regularisers:
    """The regularisers of a phase."""

    config: RegulariseConfig
    model: Model
    pretrained: frozenset[str]
    """Paths of the parameters that were loaded."""
    trainable: frozenset[str]
    """Paths of the parameters that move."""

    @functools.cached_property
    def pulled(self) -> frozenset[str]:
        """Paths that L2-SP pulls to their start: all that are pretrained and move."""
        return self.trainable & self.pretrained & self._parameters

    @functools.cached_property
    def new(self) -> frozenset[str]:
        """Paths that L2-SP pulls to zero: all that are new and move."""
        return self.trainable & (self._parameters - self.pretrained)

    @functools.cached_property
    def matched(self) -> tuple[str, ...]:
        """Stages whose features DELTA matches.

        From the first that trains to the one before the first that holds new values: from there on
        the features at the start mean nothing.
        """
        stages = self.model.stages
        moving, fresh = (
            {path.partition("/")[0] for path in paths}
            for paths in (self.trainable, self._parameters - self.pretrained)
        )
        first = next((i for i, stage in enumerate(stages) if stage in moving), len(stages))
        end = next((i for i, stage in enumerate(stages) if stage in fresh), len(stages))
        return stages[first:end]

    @functools.cached_property
    def idle(self) -> dict[str, str]:
        """Fields of the config that are on and have nothing to act on, with the reason."""
        backbone_moves = any(path.partition("/")[0] in self.model.stages for path in self.trainable)
        conditions = {
            "l2_sp": (self.pulled, "no pretrained parameter trains"),
            "l2_sp_head": (self.new, "no new parameter trains"),
            "delta": (self.matched, "no pretrained stage trains"),
            "co_tuning": (backbone_moves, "the backbone is frozen"),
            "bss": (backbone_moves, "the backbone is frozen"),
        }
        return {
            name: reason
            for name, (found, reason) in conditions.items()
            if getattr(self.config, name) and not found
        }

    def acts(self, name: str) -> bool:
        """Whether a field of the config is on and has something to act on."""
        return bool(getattr(self.config, name)) and name not in self.idle

    def reference(self, variables: Tree, adapts: Callable[[str], bool]) -> Tree:
        """What a step needs of the network at the start: only leaves that move since.

        Args:
          variables: as they were loaded.
          adapts: whether a statistic moves.

        Returns:
          `{"params": ..., "batch_stats": ...}`.
        """
        stages = self.model.stages
        compared = stages[: stages.index(self.matched[-1]) + 1] if self.acts("delta") else ()

        def is_compared(path: str) -> bool:
            return path.partition("/")[0] in compared

        def is_needed(path: str) -> bool:
            pulled = self.acts("l2_sp") and path in self.pulled
            return pulled or (path in self.trainable and is_compared(path))

        params, _ = trees.split(variables["params"], is_needed)
        statistics, _ = trees.split(
            variables.get("batch_stats", {}), lambda path: adapts(path) and is_compared(path)
        )
        return {"params": params, "batch_stats": statistics}

    def reference_features(
        self, variables: Tree, reference: Tree, inputs: jax.Array, after: str | None = None
    ) -> dict[str, jax.Array]:
        """Outputs of the network at the start, every norm on its stored averages; {} without DELTA.

        The frozen stages below the first that trains are the same in both passes: the compiler
        computes them once.

        Args:
          variables: of the network now.
          reference: see `reference`.
          inputs: what the network takes, or with `after` that output; see `Model.apply`.
          after: a frozen output that the features are computed from.
        """
        if not self.acts("delta"):
            return {}
        start = {
            kind: trees.unflatten(trees.flatten(variables[kind]) | trees.flatten(reference[kind]))
            for kind in ("params", "batch_stats")
        }
        return self.model.apply(start, inputs, after=after)[0]

    def terms(
        self,
        params: Tree,
        outputs: Mapping[str, jax.Array],
        batch: Mapping[str, jax.Array],
        reference: Tree,
        features: Mapping[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """What each one that acts adds to the loss, strength included: float32 scalars.

        The mean over devices is the term of the global batch.

        Args:
          params: of the network, the source's head among them.
          outputs: of `Model.apply`.
          batch: of images or features, with its labels.
          reference: see `reference`; for Co-Tuning with `relationship`, [K_t, K_s].
          features: from `reference_features`.
        """
        config, flat = self.config, trees.flatten(params)
        found: dict[str, jax.Array] = {}
        if self.acts("l2_sp"):
            start = trees.flatten(reference["params"])
            moved = (flat[path] - start[path] for path in sorted(self.pulled))
            found["l2_sp"] = config.l2_sp * regularise.half_square(moved)
        if self.acts("l2_sp_head"):
            new = (flat[path] for path in sorted(self.new))
            found["l2_sp_head"] = config.l2_sp_head * regularise.half_square(new)
        if self.acts("delta"):
            distances = (
                regularise.feature_distance(outputs[stage], features[stage])
                for stage in self.matched
            )
            found["delta"] = config.delta * jnp.mean(sum(distances, jnp.float32(0)))
        if self.acts("co_tuning"):
            head = params[SOURCE_HEAD]
            logits = outputs["pooled"] @ head["kernel"] + head["bias"][None]
            losses = mixed_loss(
                batch, lambda y: regularise.co_tuning(logits, y, reference["relationship"])
            )
            found["co_tuning"] = config.co_tuning * jnp.mean(losses)
        if self.acts("bss"):
            # Over all devices: a device's share has other singular values.
            pooled = jax.lax.all_gather(outputs["pooled"], AXIS, tiled=True)
            found["bss"] = config.bss * regularise.batch_spectral_shrinkage(pooled, config.bss_k)
        return found

    @functools.cached_property
    def _parameters(self) -> frozenset[str]:
        """Paths of the network, without the source's head."""
        return frozenset(trees.flatten(self.model.shapes()["params"]))


def check(phases: Sequence[Regularisers], strategy: str, batch_size: int) -> None:
    """Refuses what would do nothing.

    Args:
      batch_size: over all devices, of a micro-batch.

    Raises:
      UserError: a field of the config is on and acts in no phase; as
        `regularise.batch_spectral_shrinkage`.
    """
    never = set(phases[0].idle).intersection(*(phase.idle for phase in phases))
    for name in sorted(never):
        reason = phases[-1].idle[name]
        option = choices.option("--regularise.", name)
        raise UserError(f"{option} under {strategy}: {reason}; leave it out")
    config, model = phases[0].config, phases[0].model

    def shrinkage(variables: Tree, images: jax.Array) -> jax.Array:
        pooled = model.apply(variables, images)[0]["pooled"]
        return regularise.batch_spectral_shrinkage(pooled, config.bss_k)

    if config.bss:  # now, not when the run folder belongs to this config
        size = model.architecture.preprocessing.size
        images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
        jax.eval_shape(shrinkage, model.shapes(), images)
