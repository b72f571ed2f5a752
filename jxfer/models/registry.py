"""Architecture names -> models. The seam: the rest of jxfer sees `init`, `apply` and pytrees.

After `architectures` in the flow, which lists them. A `Model` holds a Linen module; nobody outside
this package touches it. Variables are plain nested dicts `{"params": ..., "batch_stats": ...}`.
"""

import dataclasses
import difflib
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jxfer import trees
from jxfer.errors import UserError
from jxfer.models import initialise
from jxfer.models.alexnet import AlexNet, AlexNetConfig
from jxfer.models.architectures import ARCHITECTURES, Architecture
from jxfer.models.heads import HeadConfig
from jxfer.models.layers import NORM_INPUTS, TrainLayers
from jxfer.models.resnet import ResNet, ResNetConfig
from jxfer.models.vgg import VGG, VGGConfig
from jxfer.trees import Tree

_MODULES: dict[type, type[nn.Module]] = {
    ResNetConfig: ResNet,
    AlexNetConfig: AlexNet,
    VGGConfig: VGG,
}


def list_architectures() -> list[str]:
    """Names that `create` takes."""
    return list(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """Looks a name up.

    Raises:
      UserError: no such architecture; the message offers the nearest names.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3) or list(ARCHITECTURES)
    raise UserError(f"unknown architecture {name!r}; did you mean {', '.join(near)}?")


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture built up to a stage, with or without a head. Hashable: a static argument."""

    architecture: Architecture
    stages: tuple[str, ...]
    """The stages that are built, from the first on."""
    num_classes: int | None
    """Classes of the head, or None for a backbone without one."""
    head: HeadConfig
    """Form of the head; without meaning where there is none."""
    module: nn.Module
    training_size: int | None = None
    """Of a convolutional model alone (`dense.convolutional`): the side of the images, in pixels,
    whose scores it repeats at each position."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the activations; variables and logits are float32 in any case."""

    def init(self, seed: int) -> Tree:
        """Random variables, NumPy float32: `{"params": ..., "batch_stats": ...}`."""
        shapes = self.shapes()
        return {
            kind: trees.unflatten(
                {
                    path: initialise.draw(f"{kind}/{path}", leaf.shape, seed)
                    for path, leaf in trees.flatten(shapes[kind]).items()
                }
            )
            for kind in shapes
        }

    def shapes(self) -> Tree:
        """The same tree as `init`, of `jax.ShapeDtypeStruct`; nothing is computed."""
        collections = self._collections()
        return {kind: collections.get(kind, {}) for kind in ("batch_stats", "params")}

    def apply(
        self,
        variables: Tree,
        images: jax.Array,
        train_layers: TrainLayers = frozenset(),
        keys: jax.Array | None = None,
        after: str | None = None,
    ) -> tuple[dict[str, jax.Array], Tree]:
        """Runs the network, or what comes after one of its outputs.

        Args:
          variables: as from `init`; no "batch_stats" is the same as empty ones.
          images: [B, H, W, 3] float32, normalised; with `after`, that output instead.
          train_layers: paths of the layers in train mode: norms normalise by the batch and move
            their averages, dropout drops.
          keys: [B] typed PRNG keys, one an example: all randomness of the dropout layers in
            `train_layers`. Not needed where there are none.
          after: a stage, or `pooled`, whose output `images` is: only what follows it is run.

        Returns:
          (outputs, new batch_stats). Outputs by name: each stage, [B, h, w, C] after its last
          ReLU, or [B, C] for a fully connected one after ReLU and its dropout; `pooled` [B, C],
          the mean over positions of the last stage; and with a head `logits` [B, num_classes],
          float32. A convolutional model has maps [B, h, w, C] for all of these. What the caller
          does not use, the compiler removes.

        Raises:
          UserError: the images are too small.
        """
        if after is None:
            self.architecture.check_size(min(images.shape[1:3]))
        outputs, changed = self.module.apply(
            variables,
            images.astype(self.compute_dtype),
            train_layers,
            keys,
            after,
            mutable=["batch_stats"],
        )
        return outputs, _plain(changed.get("batch_stats", {}))

    def norm_inputs(self, variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """What each norm layer sees where all of them run on their stored averages.

        Args:
          variables: as from `init`.
          images: [B, H, W, 3] float32, normalised.

        Returns:
          [B, h, w, C] by the path of the layer, as in `norm_paths`; {} for a network without norms.
        """
        _, seen = self.module.apply(
            variables, images.astype(self.compute_dtype), mutable=[NORM_INPUTS]
        )
        layers = trees.flatten(_plain(seen.get(NORM_INPUTS, {})))
        return {path.rpartition("/")[0]: x for path, (x,) in layers.items()}

    def synchronised(self, axis: str) -> "Model":
        """The same with every norm's moments over the devices of a mesh axis."""
        return dataclasses.replace(self, module=self.module.clone(axis_name=axis))

    def rematerialised(self) -> "Model":
        """The same, with each stage computed again in the backward pass to save memory."""
        return dataclasses.replace(self, module=self.module.clone(remat=True))

    def norm_paths(self) -> tuple[str, ...]:
        """Paths of all norm layers, such as `stage1/block0/norm1`."""
        return _layers(self._collections().get("batch_stats", {}))

    def dropout_paths(self) -> tuple[str, ...]:
        """Paths of all dropout layers, such as `fc6/dropout`; those of rate 0 are left out."""
        return _layers(self._collections().get("dropout", {}))

    @functools.cache  # noqa: B019 - models are few and live as long as the process
    def _collections(self) -> Tree:
        size = self.training_size or self.architecture.preprocessing.size
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return _plain(jax.eval_shape(self.module.init, jax.random.key(0), image))


def create(
    arch: str,
    num_classes: int | None,
    *,
    through: str | None = None,
    head: HeadConfig = HeadConfig(),
    sync_axis: str | None = None,
) -> Model:
    """Builds a model.

    Args:
      arch: a name in `ARCHITECTURES`.
      num_classes: classes of the head; None builds the backbone only.
      through: the last stage to build, such as "stage3"; None builds all.
      head: form of the head.
      sync_axis: mesh axis over which BatchNorm shares the batch's moments; None: per device.

    Raises:
      UserError: unknown architecture or stage; a head that needs a map on a stage without one.
    """
    row = architecture(arch)
    choices = [stage for stage in row.stages if stage != "stem"]
    last = through or row.stages[-1]
    if last not in choices:
        raise UserError(f"{arch} has no stage {last!r}; it has {', '.join(choices)}")
    if num_classes is not None and head.kind == "conv" and last.startswith("fc"):
        raise UserError(
            f"the conv head needs a map, and {last} of {arch} is a vector: set --model.through "
            "stage5"
        )
    stages = row.stages[: row.stages.index(last) + 1]
    module = _MODULES[type(row.config)](row.config, stages, num_classes, head, sync_axis)
    return Model(row, stages, num_classes, head, module)


def _layers(collection: Tree) -> tuple[str, ...]:
    """Paths of the layers that own the leaves of a collection."""
    return tuple(sorted({path.rpartition("/")[0] for path in trees.flatten(collection)}))


def _plain(tree: Any) -> Any:
    return {key: _plain(value) for key, value in tree.items()} if hasattr(tree, "items") else tree
