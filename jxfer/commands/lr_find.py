"""`jxfer lr-find`: a sweep of the learning rate, with a plot and two suggestions."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jxfer import text
from jxfer.errors import UserError
from jxfer.train import lr_find, run_folder
from jxfer.train.config import TrainConfig
from jxfer.train.lr_find import Sweep, SweepConfig


def main(args: list[str]) -> int:
    """Runs `jxfer lr-find ARGS` and returns the exit code."""

    def find(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")],
        out: pathlib.Path,
        sweep: SweepConfig = SweepConfig(),
        json: bool = False,
    ) -> int:
        """Suggest an --optimizer.lr: train some steps while the rate grows, and watch the loss.

        The other options are those of jxfer train. The backbone's rates keep their ratio to the
        head's. Of a strategy in phases the first one is swept. Only training images are looked at.

        Args:
          config: the run that wants a learning rate.
          out: A folder for lr_find.json and lr_find.png.
          sweep: which rates.
          json: Print lr_find.json instead of tables.
        """
        run_folder.make_folder(out, "--out")
        found = lr_find.find(config, sweep)
        suggestions = found.suggestions()
        figures = {
            "suggestions": suggestions,
            "diverged": found.diverged,
            **dataclasses.asdict(found),
        }
        run_folder.write_result(out / "lr_find.json", figures, "--out")
        _draw(found, suggestions, out / "lr_find.png")
        if json:
            print(text.to_json(figures))
            return 0
        _print(found, suggestions)
        print(f"\nsee {out}/lr_find.png")
        return 0

    return tyro.cli(find, prog="jxfer lr-find", args=args, config=(tyro.conf.FlagCreatePairsOff,))


def _print(found: Sweep, suggestions: dict[str, float]) -> None:
    rows = [("step", "learning rate", "loss", "smoothed")]
    for i in range(0, len(found.rates), 10):
        rows.append(
            (
                str(i + 1),
                f"{found.rates[i]:.2e}",
                f"{found.losses[i]:.4f}",
                f"{found.smoothed[i]:.4f}",
            )
        )
    print(text.table(rows))
    end = "where it diverged" if found.diverged else "the last"
    print(f"phase {found.phase}; {len(found.rates)} steps, {end}\n")
    meaning = {"steep": "the loss falls fastest", "minimum": "a tenth of the lowest loss's rate"}
    lines = [(rule, f"{rate:.2e}", meaning[rule]) for rule, rate in suggestions.items()]
    print(text.table([("suggestion", "--optimizer.lr", "why"), *lines]))


def _draw(found: Sweep, suggestions: dict[str, float], file: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.8", label="loss of the batch")
    axes.plot(found.rates, found.smoothed, color="C0", label="smoothed")
    for i, (rule, rate) in enumerate(suggestions.items(), start=1):
        axes.axvline(rate, color=f"C{i}", linestyle="--", label=f"{rule}: {rate:.2e}")
    axes.set(xscale="log", xlabel="learning rate of the head", ylabel="training loss, nats")
    axes.set_ylim(0, 1.5 * found.smoothed[0])  # where it diverges says nothing more
    axes.set_title(f"learning-rate sweep, phase {found.phase}")
    axes.legend()
    try:
        figure.savefig(file, dpi=100, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
