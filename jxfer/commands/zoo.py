"""`jxfer zoo import | list | show | verify | diff | statistics | export`: weights in and out.

Called by `jxfer.commands.main`, which turns a UserError into one line and exit code 2.
"""

import dataclasses
import json
from typing import Annotated, Any

import tyro

from jxfer import text
from jxfer.commands.zoo_diff import Diff
from jxfer.commands.zoo_export import Export
from jxfer.commands.zoo_import import Import
from jxfer.commands.zoo_statistics import Statistics
from jxfer.data import remote
from jxfer.zoo import store, zoos
from jxfer.zoo.card import Ancestor
from jxfer.zoo.report import raise_problems


@dataclasses.dataclass(frozen=True)
class List:
    """List the entries of all zoos: --zoo, $JXFER_ZOO, your own, and those that ship.

    An entry whose card is invalid is left out, and told on stderr after the others; the exit code
    is then 2.
    """

    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print a JSON list of cards."""

    def run(self) -> None:
        entries, problems = zoos.read_all(self.zoo)
        if self.json:
            _show_json(
                [{"path": remote.shown(e.path), **e.card.listed(), "name": e.name} for e in entries]
            )
        elif not entries and not problems:
            print("no entries; add one with jxfer zoo import")
        elif entries:
            header = ("name", "arch", "through", "parameters", "trained on", "classes", "accuracy")
            print(text.table([header, *(_row(entry) for entry in entries)]))
        raise_problems("invalid cards", problems)


@dataclasses.dataclass(frozen=True)
class Show:
    """Show an entry's card, and what its weights descend from."""

    entry: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENTRY")]
    """Name of an entry, or the folder of an entry or a run."""
    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print the card as JSON."""

    def run(self) -> None:
        folder = zoos.resolve(self.entry, self.zoo)
        card = store.read_card(folder)
        if self.json:
            _show_json({"path": str(folder), **card.listed()})
            return
        rows: list[tuple[str, ...]] = [("path", str(folder))]
        fields = card.listed() | {"statistics": str(card.statistics or "")}
        for key, value in fields.items():
            if key != "parents" and value not in (None, "", ()):
                rows.append((key.replace("_", " "), _shown(value)))
        print(text.table(rows))
        if card.parents:
            print("\nparents, nearest first\n" + _parents(card.parents))


@dataclasses.dataclass(frozen=True)
class Verify:
    """Read an entry whole and compare its digests; exit code 2 if it is damaged."""

    entry: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENTRY")]
    """Name of an entry, or the folder of an entry or a run."""
    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        folder = zoos.resolve(self.entry, self.zoo)
        card = store.verify(folder)
        if self.json:
            _show_json({"path": str(folder), "ok": True, "tensors_sha256": card.tensors_sha256})
        else:
            print(f"{folder}: ok, {card.parameters:,} parameters, sha256 {card.tensors_sha256}")


Command = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Statistics, tyro.conf.subcommand("statistics")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(args: list[str]) -> int:
    """Runs `jxfer zoo ARGS` and returns the exit code.

    Raises:
      UserError: bad input, a damaged entry.
      SystemExit: from tyro, for --help and wrong options.
    """
    command = tyro.cli(
        Command,
        config=(tyro.conf.FlagCreatePairsOff,),
        prog="jxfer zoo",
        description="The Model Zoo: weights in, what is there and what it is, and out.",
        args=args,
    )
    command.run()
    return 0


def _row(entry: zoos.Entry) -> tuple[str, ...]:
    card = entry.card
    if card.measured:
        last = card.measured[-1]
        accuracy = f"{last.accuracy:.2%} on {last.dataset} {last.split} (n = {last.n})"
    elif card.reported_accuracy is not None:
        accuracy = f"{card.reported_accuracy:.2%} as reported"
    else:
        accuracy = "-"
    classes = str(len(card.class_names)) if card.class_names else "no head"
    return (
        entry.name,
        card.arch,
        card.through or "all",
        f"{card.parameters:,}",
        card.dataset or "-",
        classes,
        accuracy,
    )


def _parents(parents: tuple[Ancestor, ...]) -> str:
    rows: list[tuple[str, ...]] = [
        ("name", "arch", "trained on", "strategy", "source", "tensors sha256")
    ]
    for parent in parents:
        rows.append(
            (
                parent.name,
                parent.arch,
                parent.dataset or "-",
                parent.strategy or "import",
                parent.source or "-",
                parent.tensors_sha256[:12],
            )
        )
    return text.table(rows)


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        shown = ", ".join(value[:10])
        return shown if len(value) <= 10 else f"{shown}, ... ({len(value)} in all)"
    return json.dumps(value) if isinstance(value, dict | tuple) else str(value)


def _show_json(value: Any) -> None:
    print(text.to_json(value))
