"""One grammar for weights: what a name stands for, and its tensors under our paths.

After `store`, `hub` and `torchvision`. In order:

- a path that exists: an entry's folder, a run's folder, a weight file, a folder of .npy files; or
  the `gs://` address of one, of which a copy is taken
- `hf:OWNER/NAME` or `timm/NAME`: the Hugging Face Hub
- `torchvision:NAME`: torchvision's files
- the name of an entry in the searched zoos
"""

import dataclasses
from collections.abc import Sequence

from jxfer import trees
from jxfer.data import copies, remote
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.models.registry import Model
from jxfer.trees import Tree
from jxfer.zoo import hub, readers, store, torch_names, torchvision, zoos
from jxfer.zoo.card import Card
from jxfer.zoo.published import Published, local_file
from jxfer.zoo.report import Report


@dataclasses.dataclass(frozen=True)
class Weights:
    """Variables, their card, and what was left behind."""

    card: Card
    """complete, but for the digest of an entry's files where there is no entry"""
    variables: Tree
    """`{"params": ..., "batch_stats": ...}`, host arrays"""
    where: str
    """an entry's folder, or the name or address that was given"""
    report: Report
    """what became of a file's tensors; all of an entry's are loaded"""
    head_classes: int | None = None
    """classes of the head in the file, kept or dropped; None: it has none"""

    def check_named(self) -> None:
        """Raises UserError if there is a head that had to be dropped: nothing names its classes."""
        if self.head_classes is not None and not self.card.class_names:
            raise UserError(
                f"{self.where}: nothing names the {self.head_classes} classes of its head; make an "
                f"entry of it: jxfer zoo import {self.where} --class-names ..."
            )


def load(name: str, *, arch: str | None = None, zoo: str | None = None) -> Weights:
    """Finds weights, downloads them if need be, and verifies them.

    A head whose classes nothing names is dropped: what it says could not be read.

    Args:
      name: see the head of this file.
      arch: architecture, for a plain weight file; the others know theirs.
      zoo: a folder of zoo entries that is searched first.

    Raises:
      UserError: nothing of that name, a failed download, a damaged file or entry, tensors that do
        not fit.
    """
    published = find(name, arch)
    if published is not None:
        return dataclasses.replace(convert(published), where=name)
    folder = zoos.resolve(name, zoo)
    card, variables = store.load(folder)
    classes = len(card.class_names) or None
    report = Report(loaded=tuple(trees.flatten(variables)), reinitialised=(), dropped=())
    where = remote.address(name) or str(folder)
    return Weights(card, variables, where, report, classes)


def find(name: str, arch: str | None = None) -> Published | None:
    """The file that a name stands for, downloaded if need be; None where it can only be an entry.

    Raises:
      UserError: as `load`, but for what is wrong with an entry.
    """
    path = copies.local(name)
    if any((folder / store.CARD).is_file() for folder in (path, path / "model")):
        return None
    if path.is_dir() and not readers.is_weights(path):
        raise UserError(
            f"{path}: the folder holds no entry ({store.CARD}), no run (model/{store.CARD}) and no "
            ".npy files"
        )
    if path.exists():
        return local_file(path, arch)
    if name.startswith((hub.PREFIX, hub.TIMM)):
        published = hub.fetch(name)
    elif name.startswith(torchvision.PREFIX):
        published = torchvision.fetch(name)
    else:
        return None
    if arch not in (None, published.card.arch):
        raise UserError(f"{name} is a {published.card.arch}, not a {arch}")
    return published


def convert(
    published: Published,
    *,
    class_names: Sequence[str] = (),
    headless: bool = False,
    through: str | None = None,
) -> Weights:
    """Reads a file and gives every tensor its place.

    Args:
      published: the file and its card so far.
      class_names: classes of the head; the card's own unless given.
      headless: leave the head out.
      through: the last stage to keep, without a head.

    Raises:
      UserError: a file that cannot be read, tensors that do not fit the architecture, names that
        are not as many as the head has classes.
    """
    card = published.card
    tensors, digest = readers.read_tensors(published.path)
    architecture = registry.architecture(card.arch)
    in_file = torch_names.class_count(tensors, architecture)
    if published.num_classes not in (None, in_file or 0):  # timm counts 0 where there is no head
        raise UserError(
            f"{card.name}: its config says {published.num_classes} classes, but the head of its "
            f"weights has {in_file or 'none'}"
        )
    complete = through in (None, card.through)
    names = tuple(class_names) or card.class_names
    if headless or through is not None or in_file is None:
        names = ()
    elif names and len(names) != in_file:
        raise UserError(
            f"{card.name}: {len(names)} names for the classes, but its head has {in_file}"
        )
    through = through or card.through
    model = registry.create(card.arch, len(names) or None, through=through, head=card.head)
    result = torch_names.import_torch(tensors, model)
    digest_of_tensors = trees.sha256(result.variables)
    complete = complete and (bool(names) or in_file is None)
    if published.layout_known and complete and digest_of_tensors != card.tensors_sha256:
        raise UserError(
            f"{published.path}: the tensors do not match tensors_sha256 of the card in its header; "
            "copy or export it again"
        )
    card = dataclasses.replace(
        card,
        class_names=names,
        through=_last_stage(model),
        batchnorm=card.batchnorm if published.layout_known else result.batchnorm,
        parameters=trees.size(result.variables["params"]),
        tensors_sha256=digest_of_tensors,
        source_sha256=card.source_sha256 if published.layout_known else digest,
        # Accuracies are those of the whole, and statistics of these very tensors.
        reported_accuracy=card.reported_accuracy if complete else None,
        measured=card.measured if complete else (),
        statistics=card.statistics if complete else None,
    )
    return Weights(card, result.variables, str(published.path), result.report, in_file)


def _last_stage(model: Model) -> str | None:
    """As a card says it: None for all stages."""
    return None if model.stages == model.architecture.stages else model.stages[-1]
