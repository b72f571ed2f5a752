"""`jxfer zoo export`: an entry for PyTorch, or for any program that runs JAX."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jxfer import text
from jxfer.zoo import export, store, zoos


@dataclasses.dataclass(frozen=True)
class Export:
    """Export an entry for use without jxfer; its card goes with it."""

    entry: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENTRY")]
    """Name of an entry, or the folder of an entry or a run."""
    format: Literal["torch", "stablehlo"]
    """torch: a .safetensors file with torchvision's names; stablehlo: a folder with a program for
    CPU, GPU and TPU, its weights, and a predict.py."""
    out: str
    """The file or folder to write."""
    overwrite: bool = False
    """Replace what an earlier export wrote there."""
    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        folder = zoos.resolve(self.entry, self.zoo)
        card, variables = store.load(folder)
        write = export.to_torch if self.format == "torch" else export.to_stablehlo
        write(card, variables, self.out, overwrite=self.overwrite)
        if self.json:
            print(text.to_json({"entry": str(folder), "format": self.format, "path": self.out}))
        else:
            print(f"{folder} ({card.arch}, {card.parameters:,} parameters) -> {self.out}")
            if self.format == "stablehlo":
                print(f"try it: python {self.out}/predict.py IMAGE")
