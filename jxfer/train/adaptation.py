"""What a method of domain adaptation adds to the loss of a phase, and the head that it needs.

After `regularisers`, before `state`, whose plans hold it. The network sees the images of both
domains as one batch, so that its norms have one mean and variance for both, as they have in
evaluation. Of the target's images no label is read.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jxfer.errors import UserError
from jxfer.losses import adaptation as losses
from jxfer.losses import adversarial
from jxfer.losses.adaptation import AdaptConfig
from jxfer.models.network import POOLED
from jxfer.models.registry import Model
from jxfer.train.parallel import AXIS
from jxfer.trees import Tree

DOMAIN_HEAD = "domain_head"
"""Name among the parameters of the classifier that tells the domains apart."""

Outputs = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The method of a run in one of its phases."""

    config: AdaptConfig
    model: Model
    trainable: frozenset[str]
    """Paths of the parameters that move."""
    ramp: tuple[int, int]
    """Steps of the run before the first phase in which the method acts, and from there to the end:
    over these the reversed gradient grows."""

    @functools.cached_property
    def idle(self) -> bool:
        """Whether the method has a term that nothing here could lower.

        The domain classifier reads features alone: where these are frozen, it has none to change.
        The other methods act on the logits as well, or alone.
        """
        moving = {path.partition("/")[0] for path in self.trainable}
        return self.config.is_adversarial and moving.isdisjoint(self.model.stages)

    @property
    def acts(self) -> bool:
        """Whether the phase trains on the target's images too."""
        return self.config.has_term and not self.idle

    @functools.cached_property
    def head_shapes(self) -> Tree:
        """Of the domain classifier; {} where the method has none."""
        width = _head_width(self.config, self.model)
        return {} if width is None else adversarial.discriminator_shapes(width)

    def reference(self, seed: int) -> Tree:
        """What `terms` needs besides the batch and stays the same: random projections, or {}."""
        if self.config.method != "cdan" or _projections(self.model) is None:
            return {}
        return {"projections": adversarial.projections(*_widths(self.model), seed)}

    def terms(
        self, params: Tree, source: Outputs, target: Outputs, step: jax.Array, reference: Tree
    ) -> dict[str, jax.Array]:
        """What the method adds to the loss, strength included: a float32 scalar by its name.

        It is a function of the batch over all devices, and the same on each.

        Args:
          params: of the network, the domain classifier among them.
          source: outputs of the network for this device's labelled images.
          target: the same for its unlabelled ones.
          step: steps taken, of the run.
          reference: see `reference`.
        """
        method = self.config.method
        if not self.acts:
            return {}
        if method == "mcc":
            [logits] = _over_devices(target["logits"])
            value = losses.mcc(logits, self.config.temperature)
        elif method == "coral":
            value = losses.coral(*_over_devices(source["logits"], target["logits"]))
        elif method == "dan":
            pairs = ((source[name], target[name]) for name in (POOLED, "logits"))
            features, logits = (losses.mmd(*_over_devices(*pair)) for pair in pairs)
            value = features + logits
        else:
            value = self._adversarial(params, source, target, step, reference)
        return {method: self.config.weight * value}

    def _adversarial(
        self, params: Tree, source: Outputs, target: Outputs, step: jax.Array, reference: Tree
    ) -> jax.Array:
        features = jnp.concatenate([source[POOLED], target[POOLED]]).astype(jnp.float32)
        is_source = (jnp.arange(len(features)) < len(source[POOLED])).astype(jnp.float32)
        weights = jnp.ones(len(features))
        if self.config.method == "cdan":
            logits = jnp.concatenate([source["logits"], target["logits"]])
            probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits))
            weights = adversarial.entropy_weights(probabilities)
            if "projections" in reference:
                random = reference["projections"]
                features = adversarial.random_multilinear(features, probabilities, random)
            else:
                features = adversarial.multilinear(features, probabilities)
        before, steps = self.ramp
        strength = adversarial.reversal_strength((step - before) / steps)
        # A gradient writes its mark on the outermost scope: the next keeps its name.
        with jax.named_scope("adaptation"), jax.named_scope(DOMAIN_HEAD):
            reversed_ = adversarial.reverse_gradient(features, strength)
            domains = adversarial.discriminate(params[DOMAIN_HEAD], reversed_)
        return adversarial.domain_loss(*_over_devices(domains, is_source, weights))


def initial_head(config: AdaptConfig, model: Model, seed: int) -> Tree:
    """Random values of `Adaptation.head_shapes`; {} where the method has no such head."""
    width = _head_width(config, model)
    return {} if width is None else adversarial.discriminator_init(width, seed)


def check(phases: Sequence[Adaptation], strategy: str, micro_batch: int) -> None:
    """Raises UserError where a method has a term that acts in no phase, or has too few images.

    Args:
      micro_batch: images of each domain over all devices.
    """
    method = phases[0].config.method
    if method in ("coral", "dan", "mcc") and micro_batch < 2:
        raise UserError(
            f"--adapt.method {method} needs at least 2 images of each domain at once: raise "
            "--batch-size, or lower --accumulate"
        )
    if phases[0].config.has_term and not any(phase.acts for phase in phases):
        raise UserError(
            f"--adapt.method {method} under {strategy}: the backbone is frozen, so no feature "
            "can change; use another method, or let a stage train"
        )


def _over_devices(*arrays: jax.Array) -> list[jax.Array]:
    """Joins the rows [B, ...] of all devices: a share of a batch has other moments."""
    return [jax.lax.all_gather(array, AXIS, tiled=True) for array in arrays]


def _head_width(config: AdaptConfig, model: Model) -> int | None:
    """Of what the domain classifier reads; None where the method has none."""
    if not config.is_adversarial:
        return None
    features, classes = _widths(model)
    if config.method == "dann":
        return features
    random = _projections(model)
    return features * classes if random is None else random["features"][1]


def _projections(model: Model) -> dict[str, tuple[int, int]] | None:
    return adversarial.projection_shapes(*_widths(model))


@functools.lru_cache(maxsize=32)
def _widths(model: Model) -> tuple[int, int]:
    """Number of pooled features, and of classes."""
    size = model.architecture.preprocessing.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(model.apply, model.shapes(), image)
    return outputs[POOLED].shape[-1], outputs["logits"].shape[-1]
