"""`jxfer zoo import`: weights of others into an entry."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jxfer import text, trees
from jxfer.data import copies, remote
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.trees import Tree
from jxfer.zoo import store, weights, zoos
from jxfer.zoo.card import Card
from jxfer.zoo.report import Report

_log = logging.getLogger("jxfer")


@dataclasses.dataclass(frozen=True)
class PreprocessingOverrides:
    """Where the weights expect other pixels than their architecture usually gets."""

    size: int | None = None
    """Side of the square input in pixels."""
    crop: float | None = None
    """Fraction of the resized short side that the centre crop keeps."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter for resizing."""
    mean: tuple[float, float, float] | None = None
    """Subtracted per channel, as RGB, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Divided by per channel, as RGB, for pixels in [0, 1]."""
    channel_order: Literal["RGB", "BGR"] | None = None
    """Order in which the model takes the channels."""

    def apply(self, default: Preprocessing) -> Preprocessing:
        """`default` with what is set here."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return dataclasses.replace(default, **given)


@dataclasses.dataclass(frozen=True)
class Import:
    """Import PyTorch weights as a zoo entry.

    Every tensor must find its place; what is left out is listed.
    """

    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """A .safetensors file, a folder of .npy files named after the tensors, with the extra `torch` a
    .pth, .pt or .th file; hf:OWNER/NAME or timm/NAME; torchvision:NAME."""
    arch: str | None = None
    """Architecture, such as resnet50, or resnet20 for CIFAR; needed for plain files alone."""
    name: str | None = None
    """Name of the entry; the weights' own unless given."""
    through: str | None = None
    """Keep the stages up to this one only, such as stage3, and no head."""
    headless: bool = False
    """Keep all stages and no head."""
    class_names: str | None = None
    """Classes in the order of the logits: a,b,c or a text file with one on each line."""
    licence: str | None = None
    """Licence of the weights, as their publisher states it."""
    dataset: str | None = None
    """What they were trained on."""
    source: str | None = None
    """Where they come from, such as a URL."""
    reported_accuracy: float | None = None
    """The publisher's top-1 accuracy in [0, 1]."""
    notes: str | None = None
    """Anything a user of the weights should know."""
    preprocessing: PreprocessingOverrides = PreprocessingOverrides()
    zoo: str | None = None
    """Folder or gs:// address to write to; else $JXFER_ZOO, else ~/.local/share/jxfer/zoo."""
    overwrite: bool = False
    """Replace an entry of that name."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        given = _read_class_names(self.class_names) if self.class_names is not None else ()
        headless = self.headless or self.through is not None
        if headless and given:
            raise UserError("--class-names given, but --through and --headless keep no head")
        published = weights.find(self.weights, self.arch)
        if published is None:
            entry = zoos.resolve(self.weights)
            raise UserError(f"{self.weights} is an entry already: copy {entry} into a zoo")
        # timm/resnet50.a1_in1k -> resnet50.a1_in1k; torchvision:resnet18... -> resnet18...
        name = self.name or published.card.name.rpartition("/")[2].rpartition(":")[2]
        plain = name.isprintable() and len(name.encode(errors="replace")) <= 200
        if not plain or not name or name.startswith(".") or Path(name).name != name:
            raise UserError(f"--name {name!r} cannot be a folder's name")
        found = weights.convert(
            published, class_names=given, headless=headless, through=self.through
        )
        if not headless and not found.card.class_names:
            self._ask_for_classes(found.head_classes)
        preprocessing = self.preprocessing.apply(found.card.preprocessing)
        same_pixels = preprocessing == found.card.preprocessing
        card = dataclasses.replace(
            found.card,
            name=name,
            preprocessing=preprocessing,
            # On other pixels they were not measured.
            measured=found.card.measured if same_pixels else (),
            statistics=found.card.statistics if same_pixels else None,
            **self._overrides(),
        )
        folder = zoos.write_place(self.zoo) / name
        same = None if self.overwrite else _find_same(folder, card, found.variables)
        if same is not None:
            _log.warning("%s holds this entry already", remote.shown(folder))
        card = same or store.save(folder, card, found.variables, overwrite=self.overwrite)
        if self.json:
            report = dataclasses.asdict(found.report)
            shown = {"path": remote.shown(folder), "card": card.listed(), "report": report}
            print(text.to_json(shown))
        else:
            print(_imported(card, folder, found.report))

    def _overrides(self) -> dict[str, Any]:
        """What the options say of the card, where they say anything."""
        names = ("licence", "dataset", "source", "reported_accuracy", "notes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _ask_for_classes(self, in_file: int | None) -> None:
        if in_file is None:
            raise UserError(f"{self.weights} holds no head; add --headless")
        raise UserError(
            f"{self.weights} holds a head of {in_file} classes; "
            "name them with --class-names, or drop it with --headless"
        )


def _find_same(folder: Path, card: Card, variables: Tree) -> Card | None:
    """The card of an entry that `store.save` would write again, as after a kill at the very end.

    Raises:
      UserError: as `store.load`.
    """
    address = remote.address(folder)
    is_entry = remote.read(f"{address}/{store.CARD}") if address else (folder / store.CARD).exists()
    if not is_entry:
        return None
    there, _ = store.load(copies.local(folder))
    filled_in = ("parameters", "jxfer_version", "files_sha256")
    wanted = dataclasses.replace(
        card,
        tensors_sha256=trees.sha256(variables),
        **{name: getattr(there, name) for name in filled_in},
    )
    return there if there == wanted else None


def _read_class_names(given: str) -> tuple[str, ...]:
    """`a,b,c`, or a text file with a name on each line."""
    if Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"--class-names {given}: not a text file in UTF-8") from None
    else:
        lines = given.split(",")
    return tuple(line.strip() for line in lines if line.strip())


def _imported(card: Card, folder: Path, report: Report) -> str:
    lines = [
        f"{card.name}: {card.arch}, {card.parameters:,} parameters -> {remote.shown(folder)}",
        str(report),
    ]
    if report.dropped:
        lines.append("dropped: " + ", ".join(report.dropped))
    if card.batchnorm == "folded":
        lines.append("BatchNorm came folded into the convolutions: keep it frozen when training")
    return "\n".join(map(text.one_line, lines))
