"""`jxfer advise`: measures weights on training images and says what to train."""

import pathlib
import time

import tyro

from jxfer import text
from jxfer.advise import advice as advices
from jxfer.advise import mirror, rules
from jxfer.advise.advice import Advice
from jxfer.advise.measure import Measurements, Size
from jxfer.data import screen
from jxfer.data.sources import DataConfig
from jxfer.errors import UserError
from jxfer.train import plans, run_folder
from jxfer.train.config import TrainConfig
from jxfer.transfer.labels import LOW_LR
from jxfer.zoo.pretrained import ModelConfig


def main(args: list[str]) -> int:
    """Runs `jxfer advise ARGS` and returns the exit code."""

    def advise(
        data: DataConfig,
        weights: tuple[str, ...],
        out: pathlib.Path,
        image_size: int | None = None,
        seed: int = 0,
        zoo: str | None = None,
        json: bool = False,
    ) -> int:
        """Measure weights on training images, and recommend what to train, from where and how.

        Nothing of the backbone is trained. Only training images are measured. The advice is a
        config: jxfer train --run RUN --from-advice OUT/advice.json runs it.

        Args:
          data: which images.
          weights: One or more, each a zoo entry, a run folder, timm/NAME, hf:OWNER/NAME,
            torchvision:NAME, or a weight file.
          out: A folder for advice.json and advice.png.
          image_size: Side of the input in pixels; the weights' own unless given.
          seed: Of the advised run, of the folds and of the images looked at.
          zoo: A folder of zoo entries that is searched first.
          json: Print advice.json instead of tables.
        """
        started = time.perf_counter()
        if repeated := {name for name in weights if weights.count(name) > 1}:
            raise UserError(f"--weights: {repeated.pop()} comes twice; leave one out")
        if not weights:
            raise UserError("--weights: name at least one, such as resnet20-cifar100")
        splits = screen.load_splits(data)
        candidates = {}
        for name in weights:
            model = ModelConfig(weights=name, image_size=image_size)
            config = TrainConfig(data, model, seed=seed, zoo=zoo)
            candidates[name] = (model, plans.load(config, splits.train.class_names))
        run_folder.make_folder(out, "--out")
        size, measured, advice = advices.advise(data, splits, candidates, zoo=zoo, seed=seed)
        figures = advices.to_dict(size, measured, advice)
        figures["seconds"] = time.perf_counter() - started
        run_folder.write_result(out / "advice.json", figures, "--out")
        _draw(measured, size, out / "advice.png")
        if json:
            print(text.to_json(figures))
            return 0
        print(report(data, size, measured, advice))
        print(
            f"\nmeasured in {figures['seconds']:.0f} s; to run it:\n"
            f"jxfer train --run RUN --from-advice {out}/advice.json"
        )
        return 0

    return tyro.cli(advise, prog="jxfer advise", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def report(data: DataConfig, size: Size, measured: list[Measurements], advice: Advice) -> str:
    """All tables, for people."""
    smallest, largest = size.smallest_class, size.largest_class
    each = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    chosen, config = advice.measured, advice.config
    lines = [
        f"{data.source}: {size.examples} training images, {size.classes} classes of {each}: "
        f"{'few' if advice.verdict.few else 'many'} of a class, limit {rules.FEW}",
        f"for {chosen.weights}: {advice.verdict} ({advice.verdict.decided_by})",
        "",
        text.table(_depth_rows(measured)),
        "",
        text.table(_score_rows(measured)),
    ]
    reasons = sorted({f"-: {why}" for m in measured for why in m.missing.values()})
    lines += [*reasons, "", text.table(_advice_rows(config, advice)), ""]
    for table in advice.tables:
        how = "agrees" if table.agrees else "is overridden"
        told = f"says {table.says}: it {how}" if table.says else "cannot be asked"
        lines.append(f"{table.table} {told}")
    lines += [f"warning: {warning}" for warning in advice.warnings]
    lines += [f"would change with {change}" for change in advice.would_change]
    return "\n".join(lines)


def _depth_rows(measured: list[Measurements]) -> list[tuple[str, ...]]:
    names = ("weights", "stage", "features", "probe", "5 neighbours", "LogME", "norm shift")
    rows: list[tuple[str, ...]] = [names]
    for one in measured:
        for depth in one.depths:
            shift = one.norm_shift.get(depth.stage)
            rows.append(
                (
                    one.weights,
                    depth.stage,
                    str(depth.features),
                    f"{depth.probe:.1%}",
                    f"{depth.neighbours:.1%}",
                    f"{depth.log_me:.3f}",
                    _figure(shift),
                )
            )
    return rows


def _score_rows(measured: list[Measurements]) -> list[tuple[str, ...]]:
    names = ("proxy A-distance", "Fréchet", "LEEP", "NCE", "H-score", "mirror distance")
    return [
        ("weights", *names),
        *(
            (
                one.weights,
                *map(_figure, (one.proxy_a_distance, one.frechet, one.leep, one.nce, one.h_score)),
                f"{one.mirrors.distance:.2f}",
            )
            for one in measured
        ),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _advice_rows(config: TrainConfig, advice: Advice) -> list[tuple[str, ...]]:
    optimizer, strategy = config.optimizer, config.strategy
    frozen = {"linear_probe": "the whole backbone", "partial": f"through {strategy.freeze_through}"}
    share = advice.cost.flops / advice.full_cost.flops
    rates = f"{optimizer.lr:g} for the head"
    if strategy.name != "linear_probe":
        rates += f", {optimizer.peaks()[LOW_LR]:g} for the backbone"
    time = ""
    if advice.seconds is not None and advice.full_seconds is not None:
        time = f"; about {advice.seconds:.0f} s here, against {advice.full_seconds:.0f}"
    mirrors = advice.measured.mirrors
    flips = f"mirror distance {mirrors.distance:.2f}, limit {mirror.HARMLESS_DISTANCE}"
    return [
        ("advice", ""),
        ("weights", advice.measured.weights),
        ("strategy", strategy.name),
        ("frozen", frozen.get(strategy.name, "nothing")),
        ("rates", rates),
        ("epochs", f"{config.epochs:g}, batches of {config.batch_size}: {advice.cost.steps} steps"),
        ("augmentation", f"{'flips' if config.augment.flip else 'none'} ({flips})"),
        ("trains", f"{advice.cost.trainable:,} of {advice.full_cost.trainable:,} parameters"),
        (
            "training steps",
            f"{advice.cost.flops / 1e12:.3g} TFLOP, {share:.0%} of those of full fine-tuning{time}",
        ),
    ]


def _draw(measured: list[Measurements], size: Size, file: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, one in enumerate(measured):
        stages = [depth.stage for depth in one.depths]
        probes = [100 * depth.probe for depth in one.depths]
        # The standard error of a share of the images that were looked at.
        errors = [(p * (100 - p) / one.images) ** 0.5 for p in probes]
        axes.errorbar(stages, probes, errors, color=f"C{i}", capsize=3, label=one.weights)
        near = [100 * depth.neighbours for depth in one.depths]
        axes.plot(stages, near, color=f"C{i}", linestyle="--")
    axes.axhline(100 / size.classes, color="0.7", linestyle=":", label="chance")
    axes.set(ylim=(0, 100), ylabel="cross-validated accuracy, %")
    axes.set_title("what each stage knows of the classes: probe, and 5 neighbours (dashed)")
    axes.legend()
    try:
        figure.savefig(file, dpi=100, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
