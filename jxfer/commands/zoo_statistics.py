"""`jxfer zoo statistics`: what an entry's features are on the images that it was trained on."""

import dataclasses
import logging
import os
from typing import Annotated

import tyro

from jxfer import text
from jxfer.advise.source import source_statistics
from jxfer.data import copies, sources
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.train.writers import ProgressBar
from jxfer.zoo import store, zoos

_log = logging.getLogger("jxfer")


@dataclasses.dataclass(frozen=True)
class SourceData:
    """The images that the weights were trained on."""

    source: str
    """digits, glyphs, rendered_digits, tfds:NAME[/CONFIG][:VERSION] or folder:PATH."""
    data_dir: str | None = None
    """Where tfds: datasets are prepared, a folder or gs://; else TFDS_DATA_DIR."""
    split_seed: int = DataConfig.split_seed
    """The training's own, where the data has no val split."""
    val_fraction: float = DataConfig.val_fraction
    """The training's own, where the data has no val split."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Write mean, covariance and a sample of the source's features into an entry's card.

    They say how far other images lie from those that the weights were trained on. One pass over the
    images; the tensors are not touched.
    """

    entry: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENTRY")]
    """Name of an entry, or the folder of an entry or a run."""
    data: SourceData
    split: str = "train"
    """Of the data: train is what training saw."""
    batch_size: int = 128
    """Images per step over all devices."""
    zoo: str | None = None
    """A folder of entries that is searched first."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        folder = zoos.resolve(self.entry, self.zoo)
        card, variables = store.load(folder)
        # Before the pass, not after it.
        if copies.is_copy(folder) or not os.access(folder, os.W_OK):
            raise UserError(f"{folder} is read-only; copy the entry into a zoo of your own")
        config = DataConfig(**dataclasses.asdict(self.data))
        source = sources.open_for_evaluation(config, self.split)
        if card.class_names and set(card.class_names) != set(source.class_names):
            _log.warning(
                "the classes of %s are not those of %s: is it what the weights were trained on?",
                config.source,
                card.name,
            )
        with ProgressBar(len(source), 0, unit="image") as bar:
            statistics = source_statistics(
                card,
                variables,
                source,
                config,
                self.split,
                batch_size=self.batch_size,
                advance=bar.advance,
            )
        card = dataclasses.replace(card, statistics=statistics)
        store.write_card(folder, card)
        if self.json:
            print(text.to_json({"path": str(folder), "statistics": card.listed()["statistics"]}))
        else:
            print(text.one_line(f"{folder}: {statistics}"))
