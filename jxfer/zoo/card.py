"""The card of a zoo entry: what travels with the weights.

After `source_statistics`, before `store`, which reads and writes `card.json`.
"""

import dataclasses
import json
from typing import Any, Literal

from jxfer import sealed
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.json_fields import ADDED, decode, parse
from jxfer.models.heads import HeadConfig
from jxfer.zoo.source_statistics import ARRAYS, SourceStatistics

ANEW = "copy or import the entry again"
"""What to do about one that is damaged."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """An accuracy that jxfer itself measured.

    Raises:
      UserError: the counts and the accuracy do not belong together.
    """

    dataset: str
    """data spec, such as "tfds:cifar10" or a folder's name"""
    split: str
    """"train", "val" or "test\""""
    accuracy: float
    """correct / n, in [0, 1]"""
    correct: int
    """examples classified rightly"""
    n: int
    """examples evaluated"""

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n or self.n == 0:
            raise UserError(
                f"measured: {self.correct} correct of {self.n} is impossible; give the "
                "counts of an evaluation"
            )
        if abs(self.accuracy - self.correct / self.n) > 1e-6:
            raise UserError(
                f"measured: accuracy {self.accuracy} is not {self.correct} of {self.n}; give "
                f"{self.correct / self.n:.6g}"
            )


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """What a card keeps of an entry that its weights descend from."""

    name: str
    """name of the entry"""
    arch: str
    """its architecture"""
    dataset: str
    """what it was trained on"""
    licence: str
    """licence of its weights"""
    strategy: str | None
    """transfer strategy that made it; None for an import"""
    source: str
    """where it came from, for an import"""
    source_sha256: str | None
    """hex digest of that file"""
    tensors_sha256: str
    """hex digest of its tensors, as in its own card"""


@dataclasses.dataclass(frozen=True)
class Card:
    """Everything needed to use an entry's tensors, and to tell where they come from.

    Raises:
      UserError: `reported_accuracy` is outside [0, 1], two classes have one name, or the statistics
        are of other tensors or pixels.
    """

    name: str
    """name of the entry"""
    arch: str
    """architecture, a name in `jxfer.models.architectures.ARCHITECTURES`"""
    class_names: tuple[str, ...]
    """classes in the order of the logits; empty if the entry has no head"""
    preprocessing: Preprocessing
    """the pixels that the weights were trained on"""
    head: HeadConfig = HeadConfig()
    """the classifier's form; without meaning if the entry has no head"""
    through: str | None = None
    """last stage that the entry holds, such as "stage3"; None: all of them"""
    batchnorm: Literal["standard", "folded"] = "standard"
    """"folded": the norms were folded into the convolutions before the weights came here, so that
    their statistics are placeholders and must stay frozen or be recalibrated"""
    parameters: int = 0
    """elements in all parameters, statistics not counted; filled in by `store.save`"""
    dataset: str = ""
    """what the weights were trained on"""
    licence: str = "unknown"
    """licence of the weights, as their publisher states it"""
    source: str = ""
    """where the weights come from: a URL or a file name; empty if they were trained here"""
    source_sha256: str | None = None
    """hex digest of the source file, as `readers.read_tensors` computes it"""
    parents: tuple[Ancestor, ...] = ()
    """the entry that training started from, then that entry's own parents, and so on; empty for
    random weights and imports"""
    reported_accuracy: float | None = None
    """top-1 accuracy in [0, 1] that the publisher states"""
    measured: tuple[Measurement, ...] = ()
    """accuracies that jxfer measured on these tensors"""
    strategy: str | None = None
    """transfer strategy that made the weights; None for an import"""
    config: dict[str, Any] | None = None
    """the run's configuration; None for an import"""
    seed: int | None = None
    """the run's seed; None for an import"""
    command: str | None = None
    """command line of the run; None for an import, which `source_sha256` determines"""
    commit: str | None = None
    """git commit of the code that ran it; None for an import"""
    notes: str = ""
    """anything a user of the weights should know"""
    jxfer_version: str = ""
    """version that wrote the entry; filled in by `store.save`"""
    tensors_sha256: str = ""
    """hex digest of names, shapes, types and values (`trees.sha256`); filled in by `store.save`"""
    files_sha256: str = ""
    """hex digest of the files under `tensors/`; filled in by `store.save`"""
    statistics: SourceStatistics | None = dataclasses.field(default=None, metadata=ADDED)
    """features of the images that the weights were trained on, by `jxfer zoo statistics`"""

    def __post_init__(self) -> None:
        if len(set(self.class_names)) < len(self.class_names):
            names = self.class_names
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(
                f"class_names names {twice[0]!r} twice; give each class a name of its own"
            )
        if self.reported_accuracy is not None and not 0 <= self.reported_accuracy <= 1:
            raise UserError(
                f"reported_accuracy must be in [0, 1], not {self.reported_accuracy}; "
                "give 0.9173 for 91.73 %"
            )
        made = self.statistics
        if made is not None and (made.tensors_sha256, made.preprocessing) != (
            self.tensors_sha256,
            self.preprocessing,
        ):
            raise UserError(
                "the statistics are of other tensors or of another preprocessing than the card's; "
                "set them to null and run jxfer zoo statistics again"
            )

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raises UserError unless these names of a data set are the entry's, in its order."""
        if names == self.class_names:
            return
        ours, theirs = set(self.class_names), set(names)
        if ours == theirs:
            told = ", ".join(self.class_names)[:200]
            raise UserError(
                f"the data lists the classes of {self.name} in another order; rename the class "
                f"folders so that they sort as the model has them: {told}"
            )
        raise UserError(
            f"{self.name} knows {len(ours)} classes and the data has {len(theirs)}; only in the "
            f"model: {_some(ours - theirs)}; only in the data: {_some(theirs - ours)}; "
            "use data of the model's classes, or train on these"
        )

    def as_ancestor(self) -> Ancestor:
        """What the card of a descendant keeps of this one."""
        fields = (field.name for field in dataclasses.fields(Ancestor))
        return Ancestor(**{name: getattr(self, name) for name in fields})

    def listed(self) -> dict[str, Any]:
        """Every field, for commands to print: without the arrays of the statistics."""
        fields = dataclasses.asdict(self)
        for name in ARRAYS if self.statistics else ():
            del fields["statistics"][name]
        return fields

    def to_json(self) -> str:
        """Indented JSON: the checksum of `sealed`, and every field in the order above.

        The same card gives the same text.
        """
        fields = sealed.seal(dataclasses.asdict(self))
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "card.json") -> "Card":
        """Inverse of `to_json`.

        Args:
          text: the file's content.
          where: the file's path, for messages.

        Raises:
          UserError: not JSON, or a field is missing, unknown, of the wrong type, or not what was
            written.
        """
        try:
            value = parse(text)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON: {error}; {ANEW}") from None
        card = decode(cls, sealed.bare(value), where)
        try:
            card.to_json().encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: holds text that is no Unicode: {error.reason}; {ANEW}"
            ) from None
        sealed.unseal(value, where)
        return card


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
