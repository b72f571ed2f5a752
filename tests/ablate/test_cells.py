"""Which key a cell goes by."""

import dataclasses

from jxfer.ablate.cells import key_of
from jxfer.ablate.experiment import PARENT, Cell, Setting
from jxfer.zoo.pretrained import ModelConfig
from tests.ablate.grids import RATES, config


def test_a_key_is_that_of_the_config_and_of_what_comes_before():
    plain = Cell(config(Setting("one"), "a", RATES[0], 0))
    assert key_of(plain) == key_of(Cell(config(Setting("one"), "a", RATES[0], 0)))
    child = dataclasses.replace(plain.config, model=ModelConfig(weights=PARENT))
    other = Cell(config(Setting("one"), "a", RATES[0], 1))
    keys = {key_of(plain), key_of(other), key_of(Cell(child, plain)), key_of(Cell(child, other))}
    assert len(keys) == 4
    assert all(len(key) == 12 for key in keys)
