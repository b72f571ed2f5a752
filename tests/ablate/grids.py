"""An experiment of two settings and two arms, with a search; nothing of it is run."""

from jxfer.ablate.experiment import Experiment, Setting
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig

RATES = ({"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3})


def config(setting, arm, choice, seed):
    epochs = {"a": 1.0, "b": 2.0}[arm]
    data = DataConfig("digits", per_class=10 if setting.name == "one" else 20)
    return TrainConfig(data, optimizer=OptimizerConfig(lr=choice["lr"]), epochs=epochs, seed=seed)


def experiment_of(**changes):
    fields = {
        "title": "a table",
        "settings": (Setting("one"), Setting("two")),
        "arms": ("a", "b"),
        "cell": config,
        "seeds": (0, 1),
        "choices": {"a": RATES, "b": RATES},
        "tuning_seeds": (100, 101),
    }
    return Experiment(**(fields | changes))
