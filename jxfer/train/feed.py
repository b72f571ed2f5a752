"""The training batches of a run on this host.

After `config` in the flow.
"""

from collections.abc import Iterator

import jax

from jxfer.data import loader
from jxfer.data.mixing import Batch
from jxfer.data.readers import Source
from jxfer.data.transforms import Preprocessing
from jxfer.train.config import TrainConfig


def train_batches(
    config: TrainConfig, source: Source, preprocessing: Preprocessing, *, start_step: int = 0
) -> Iterator[Batch]:
    """`loader.train_batches` as the config says, from step `start_step` + 1 on."""
    return loader.train_batches(
        source,
        preprocessing,
        config.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        balanced_sampling=config.data.balanced_sampling,
        start_step=start_step,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
