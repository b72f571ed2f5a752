"""jxfer: transfer learning with image classifiers in JAX.

The public API, imported when it is first used:

- `list_architectures`, `list_zoo`: what there is to start from.
- `ModelConfig`, `create_model`: a network with pretrained weights and a new head.
- `transplant`: an entry's tensors into a model, also into one of another architecture.
- `TrainConfig` and the configs that it is made of, `run_config`: a run, from a config to its
  summary.
- `UserError`: what a person can cause.

Images have one label each; multi-label classification is out of scope.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jxfer.data.sources import DataConfig as DataConfig
    from jxfer.data.transforms import AugmentConfig as AugmentConfig
    from jxfer.errors import UserError as UserError
    from jxfer.losses.adaptation import AdaptConfig as AdaptConfig
    from jxfer.losses.classification import LossConfig as LossConfig
    from jxfer.losses.regularise import RegulariseConfig as RegulariseConfig
    from jxfer.models.heads import HeadConfig as HeadConfig
    from jxfer.models.registry import list_architectures as list_architectures
    from jxfer.train.config import TrainConfig as TrainConfig
    from jxfer.train.feature_store import CacheConfig as CacheConfig
    from jxfer.train.loop import run_config as run_config
    from jxfer.transfer.optimizer import OptimizerConfig as OptimizerConfig
    from jxfer.transfer.strategy import StrategyConfig as StrategyConfig
    from jxfer.zoo.pretrained import ModelConfig as ModelConfig
    from jxfer.zoo.pretrained import Pretrained as Pretrained
    from jxfer.zoo.pretrained import create_model as create_model
    from jxfer.zoo.transplant import transplant as transplant
    from jxfer.zoo.zoos import list_zoo as list_zoo

_HOMES = {
    "AdaptConfig": "jxfer.losses.adaptation",
    "AugmentConfig": "jxfer.data.transforms",
    "CacheConfig": "jxfer.train.feature_store",
    "DataConfig": "jxfer.data.sources",
    "HeadConfig": "jxfer.models.heads",
    "LossConfig": "jxfer.losses.classification",
    "ModelConfig": "jxfer.zoo.pretrained",
    "OptimizerConfig": "jxfer.transfer.optimizer",
    "Pretrained": "jxfer.zoo.pretrained",
    "RegulariseConfig": "jxfer.losses.regularise",
    "StrategyConfig": "jxfer.transfer.strategy",
    "TrainConfig": "jxfer.train.config",
    "UserError": "jxfer.errors",
    "create_model": "jxfer.zoo.pretrained",
    "list_architectures": "jxfer.models.registry",
    "list_zoo": "jxfer.zoo.zoos",
    "run_config": "jxfer.train.loop",
    "transplant": "jxfer.zoo.transplant",
}


def __getattr__(name: str) -> Any:
    # Lazily, so that `import jxfer` and `jxfer --help` do not wait for JAX.
    if name not in _HOMES:
        raise AttributeError(f"module 'jxfer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
