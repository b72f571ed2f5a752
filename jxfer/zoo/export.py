"""A zoo entry for other programs: a PyTorch state dict, or a StableHLO program that needs no jxfer.

After `store` in the flow; `torch_names.import_torch` reads the first one back. The card goes with
both, so that class names, preprocessing and lineage are not lost.
"""

import shutil
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jxfer import trees
from jxfer.data.transforms import normalise
from jxfer.errors import UserError
from jxfer.trees import Tree
from jxfer.zoo import readers, standalone, store, torch_names, whole
from jxfer.zoo.card import Card
from jxfer.zoo.published import CARD_KEY

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "model.jaxexport"


def to_torch(card: Card, variables: Tree, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a .safetensors file that PyTorch's own network loads with `strict=True`.

    The header's metadata is `format: pt` and, under `jxfer_card`, the card as JSON. An entry that
    holds only some stages, or no head, is written as what it holds. Norms that were folded into the
    convolutions are written as the norms that they are (scale 1, mean 0, variance 1 - 1e-5, and the
    bias): the function is the same, and the card still says that they are folded.

    Args:
      card: the entry's card.
      variables: its tensors.
      path: of the file; ends in .safetensors.
      overwrite: replace a file that is there.

    Raises:
      UserError: another suffix; a head that torchvision's networks do not have; as
        `whole.replacing`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the file of a PyTorch export must end in .safetensors")
    tensors = torch_names.export_torch(variables, store.build(card))
    metadata = {"format": "pt", CARD_KEY: card.to_json()}
    with whole.replacing(
        path, overwrite=overwrite, kind="export of jxfer", is_one=_is_torch_export
    ) as new:
        new.write_bytes(save(tensors, metadata))  # `save_file` would make it private


def to_stablehlo(
    card: Card, variables: Tree, folder: str | Path, *, overwrite: bool = False
) -> None:
    """Writes a folder with the program, its weights, the card and a `predict.py` that runs them.

    `model.jaxexport` is what `jax.export.deserialize` takes: a function of (weights, images). The
    weights are those of `weights.safetensors`, `{path: array}`; the images are uint8 RGB, any
    number of them, [B, size, size, 3], resized and cropped as the card says. Normalisation is
    inside. It returns logits, float32 [B, K]. One program serves CPU, CUDA and TPU; JAX promises to
    read it for six months of later versions.

    Args:
      card: the entry's card.
      variables: its tensors.
      folder: to write.
      overwrite: replace an export that is there.

    Raises:
      UserError: the entry has no head; as `whole.replacing`.
    """
    if not card.class_names:
        raise UserError(f"{card.name} has no head, only a backbone; train one on it first")
    program = _program(card)
    weights = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(variables).items()}
    with whole.replacing(
        Path(folder),
        overwrite=overwrite,
        kind="exported model and nothing else",
        is_one=_is_stablehlo_export,
    ) as new:
        new.mkdir()
        (new / PROGRAM).write_bytes(program)
        (new / "weights.safetensors").write_bytes(save(weights))
        (new / store.CARD).write_text(card.to_json(), encoding="utf-8")
        shutil.copyfile(Path(standalone.__file__), new / "predict.py")


def _is_torch_export(path: Path) -> bool:
    try:
        return path.is_file() and CARD_KEY in readers.read_metadata(path)
    except UserError:  # unreadable: not ours to replace
        return False


def _is_stablehlo_export(path: Path) -> bool:
    ours = {PROGRAM, "weights.safetensors", store.CARD, "predict.py", "__pycache__"}
    return (path / PROGRAM).is_file() and {file.name for file in path.iterdir()} <= ours


def _program(card: Card) -> bytes:
    """The serialised function (weights, images) -> logits."""
    model, preprocessing = store.build(card), card.preprocessing

    @jax.jit
    def logits(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        variables = trees.unflatten(weights)
        return model.apply(variables, normalise(images, preprocessing))[0]["logits"]

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, preprocessing.size, preprocessing.size, 3), jnp.uint8)
    exported = jax.export.export(logits, platforms=PLATFORMS)(trees.flatten(model.shapes()), images)
    return bytes(exported.serialize())
