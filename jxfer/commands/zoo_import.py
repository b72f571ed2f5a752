"""`jxfer zoo import`: weights of others into an entry."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jxfer import text
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.zoo import readers, store, torch_names
from jxfer.zoo.card import Card
from jxfer.zoo.report import Report


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

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A .safetensors file, a folder of .npy files named after the tensors, or, with the extra
    `torch`, a .pth, .pt or .th file."""
    arch: str
    """Architecture, such as resnet50, or resnet20 for CIFAR."""
    name: str | None = None
    """Name of the entry; the file's name without its suffix unless given."""
    through: str | None = None
    """Keep the stages up to this one only, such as stage3, and no head."""
    headless: bool = False
    """Keep all stages and no head."""
    class_names: str | None = None
    """Classes in the order of the logits: a,b,c or a text file with one on each line."""
    licence: str = "unknown"
    """Licence of the weights, as their publisher states it."""
    dataset: str = ""
    """What they were trained on."""
    source: str | None = None
    """Where they come from, such as a URL; the file's name unless given."""
    reported_accuracy: float | None = None
    """The publisher's top-1 accuracy in [0, 1]."""
    notes: str = ""
    """Anything a user of the weights should know."""
    preprocessing: PreprocessingOverrides = PreprocessingOverrides()
    zoo: str | None = None
    """Folder to write to; else $JXFER_ZOO, else ~/.local/share/jxfer/zoo."""
    overwrite: bool = False
    """Replace an entry of that name."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        path = Path(self.path)
        name = self.name or (path.name if path.is_dir() else path.stem)
        if not name or name.startswith(".") or Path(name).name != name:
            raise UserError(f"--name {name!r} cannot be a folder's name")
        architecture = registry.architecture(self.arch)
        tensors, digest = readers.read_tensors(path)
        classes = self._classes(torch_names.class_count(tensors, architecture))
        model = registry.create(self.arch, len(classes) or None, through=self.through)
        result = torch_names.import_torch(tensors, model)
        complete = model.stages == architecture.stages
        card = Card(
            name=name,
            arch=self.arch,
            through=None if complete else model.stages[-1],
            class_names=classes,
            preprocessing=self.preprocessing.apply(architecture.preprocessing),
            batchnorm=result.batchnorm,
            dataset=self.dataset,
            licence=self.licence,
            source=self.source or path.name,
            source_sha256=digest,
            reported_accuracy=self.reported_accuracy,
            notes=self.notes,
        )
        folder = store.write_place(self.zoo) / name
        card = store.save(folder, card, result.variables, overwrite=self.overwrite)
        if self.json:
            report = dataclasses.asdict(result.report)
            shown = {"path": str(folder), "card": dataclasses.asdict(card), "report": report}
            print(text.to_json(shown))
        else:
            print(_imported(card, folder, result.report))

    def _classes(self, in_file: int | None) -> tuple[str, ...]:
        """Names of the classes that the entry keeps: none without a head."""
        headless = self.headless or self.through is not None
        names = _read_class_names(self.class_names) if self.class_names is not None else ()
        if headless:
            if names:
                raise UserError("--class-names given, but --through and --headless keep no head")
            return ()
        if in_file is None:
            raise UserError(f"{self.path} holds no head; add --headless")
        if not names:
            raise UserError(
                f"{self.path} holds a head of {in_file} classes; "
                "name them with --class-names, or drop it with --headless"
            )
        if len(names) != in_file:
            raise UserError(
                f"--class-names gives {len(names)} names, but the head of {self.path} "
                f"has {in_file} classes"
            )
        return names


def _read_class_names(given: str) -> tuple[str, ...]:
    """`a,b,c`, or a text file with a name on each line."""
    if Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"--class-names {given}: not a text file in UTF-8") from None
    else:
        lines = given.split(",")
    names = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--class-names names {twice[0]!r} twice")
    return names


def _imported(card: Card, folder: Path, report: Report) -> str:
    lines = [f"{card.name}: {card.arch}, {card.parameters:,} parameters -> {folder}", str(report)]
    if report.dropped:
        lines.append("dropped: " + ", ".join(report.dropped))
    if card.batchnorm == "folded":
        lines.append("BatchNorm came folded into the convolutions: keep it frozen when training")
    return "\n".join(lines)
