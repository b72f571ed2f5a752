"""How transferable are features, layer by layer?

Yosinski et al. 2014, "How transferable are features in deep neural networks?", sections 2 and 4 and
figure 2. Two networks learn A and B, which share no class. The first n stages of one are copied,
the rest is new, and the network learns B:

| arm | first n stages | are |
|---|---|---|
| `BnB` | of B's network | frozen |
| `BnB+` | of B's network | fine-tuned, at the rate of the rest |
| `AnB` | of A's network | frozen |
| `AnB+` | of A's network | fine-tuned |
| `baseB` | none | |

The copies have learned for some epochs before and learn for as many after; baseB takes all of them
at once.

Claims: AnB falls with n, since features become specific (section 4.1); in the middle, through stage
2, BnB is below BnB+, since layers that learned together were torn apart (fragile co-adaptation);
from there on AnB is below BnB; BnB+ is as good as baseB; AnB+ is better than baseB, even though all
of it was trained on B, and than BnB+, the control for training longer (figure 2). Where A is
natural and B man-made, AnB falls more than for a random split (section 4.2): the two tables are
beside one another, but no claim is made, since their test images differ.

Expected: AnB+ the highest line, flat; BnB+ near baseB; BnB and AnB fall, AnB more.

Measured: on the mean baseB is the highest (31 to 39 % on a random split, 32 to 36 from natural
classes), BnB+ 0.6 points below it and AnB+ 1.0 (0.3 to 1.7); AnB falls by 2.5 points a stage on a
random split (1.2 to 3.8) and by 4.6 from natural classes (3.9 to 5.3).

Command: `python experiments/yosinski2014_transferability.py --jobs 2`, after
`python experiments/shifts.py ZIPS`
Time: 40 minutes on 2 cores; `--small` (glyphs are A, digits B; 2 seeds) four minutes, without
images. The numbers at the top of the file cut the paper's grid down to that; on an accelerator set
SIZE 32, PER_CLASS 240 and EPOCHS 30.
"""

import dataclasses
import sys

import shifts

from jxfer.ablate.claims import Close, Falls, Greater
from jxfer.ablate.experiment import PARENT, Cell, Choice, Experiment, Setting
from jxfer.commands.main import main
from jxfer.data.sources import DataConfig
from jxfer.train.config import TrainConfig
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

SIZE = 16  # pixels of a side: a quarter of the work of 32
PER_CLASS = 80  # training images
EPOCHS = 5.0  # of a network that is copied from, and after copying
BASE_LR = 0.1
STAGES = ("stem", "stage1", "stage2", "stage3")
DEPTHS = {"stem and stage 1": 2, "stage 2": 3, "stage 3": 4}
"""Stages that are copied, counted from the stem; by the name of the last."""
KINDS = {"random split": "random", "natural to man-made": "natural"}
"""Of the halves; by what the table calls them."""
BASE = "baseB"
ARMS = (BASE, "BnB", "BnB+", "AnB", "AnB+")


def experiment(small: bool = False) -> Experiment:
    """The table.

    Args:
      small: glyphs are A and digits B; fewer images, depths, epochs and seeds.

    Raises:
      UserError: images are not there.
    """
    kinds = ("glyphs to digits",) if small else tuple(KINDS)
    depths = ("stage 2", "stage 3") if small else tuple(DEPTHS)
    places = {f"{kind}, {depth}": (kind, DEPTHS[depth]) for kind in kinds for depth in depths}
    if not small:
        shifts.source("halves")
    epochs = 3.0 if small else EPOCHS

    def config(
        kind: str, half: str, seed: int, lr: float, model: ModelConfig, strategy: StrategyConfig
    ) -> TrainConfig:
        embedded = {"A": "glyphs", "B": "digits"}
        spec = embedded[half] if small else shifts.source(f"halves/{KINDS[kind]}-{seed}/{half}")
        return TrainConfig(
            data=DataConfig(spec, per_class=30 if small else PER_CLASS, split_seed=seed),
            model=model,
            strategy=strategy,
            optimizer=OptimizerConfig(
                lr=lr, backbone_lr=lr, nesterov=True, weight_decay=5e-4, schedule="one_cycle"
            ),
            epochs=epochs,
            batch_size=32,
            eval_every=epochs,
            seed=seed,
        )

    def base(kind: str, half: str, seed: int, lr: float) -> TrainConfig:
        model = ModelConfig(arch="resnet20", image_size=SIZE)
        return config(kind, half, seed, lr, model, StrategyConfig("scratch"))

    def cell(setting: Setting, arm: str, choice: Choice, seed: int) -> TrainConfig | Cell:
        kind, depth = places[setting.name]
        if arm == BASE:
            alone = base(kind, "B", seed, choice["lr"])
            # Those that start from a copy have had as many epochs before.
            return dataclasses.replace(alone, epochs=2 * epochs, eval_every=2 * epochs)
        copied, strategy = STAGES[:depth], StrategyConfig("full")
        if not arm.endswith("+"):
            strategy = StrategyConfig("partial", freeze_through=copied[-1])
        model = ModelConfig(PARENT, arch="resnet20", reuse=copied)
        before = base(kind, arm[0], seed, BASE_LR)
        # Of one seed, the new stages would start where those that they replace once did.
        before = dataclasses.replace(before, seed=seed + 1000)
        after = config(kind, "B", seed, choice["lr"], model, strategy)
        return Cell(after, after=Cell(before))

    def through(*last: str) -> tuple[str, ...]:
        """The settings in which these stages are the last that are copied."""
        return tuple(name for name, (_, depth) in places.items() if STAGES[depth - 1] in last)

    shared = Setting(next(iter(places)))
    return Experiment(
        title="Transferability of features by depth",
        settings=tuple(Setting(name, x=float(depth - 1)) for name, (_, depth) in places.items()),
        arms=ARMS,
        cell=cell,
        seeds=(0, 1) if small else (0, 1, 2, 3, 4),
        choices=dict.fromkeys(ARMS, tuple({"lr": lr} for lr in (0.05, 0.1, 0.2))),
        tuning_seeds=(100,),
        tune_in=lambda setting: shared,
        claims=(
            *(
                Falls("AnB", settings=tuple(name for name in places if places[name][0] == kind))
                for kind in kinds
            ),
            Greater("BnB+", "BnB", through("stage2")),
            Greater("BnB", "AnB", through("stage2", "stage3")),
            Close("BnB+", BASE, 2.0, pooled=True),
            Greater("AnB+", BASE, pooled=True),
            Greater("AnB+", "BnB+", pooled=True),
        ),
        axis="last stage that is copied",
        note=(
            "The small preset tries the code: glyphs are A and digits B."
            if small
            else f"ResNet-20 at {SIZE} px, 30 classes in each half, a draw of them for each seed, "
            f"{PER_CLASS} training images of a class, {EPOCHS:g} epochs before copying and "
            f"{EPOCHS:g} after, {2 * EPOCHS:g} for {BASE}, no augmentation, 900 test images. "
            f"Networks that are copied from learn at {BASE_LR:g}; the rates of the arms are "
            f"chosen in '{shared.name}'. The paper's networks are larger, and have seen 500 "
            "classes of a thousand images: the grid is cut to what two cores do in about an hour."
        ),
    )


if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv]))
