"""`jxfer report`: tables, figures and a page of a sweep or a run."""

import pathlib

import tyro

from jxfer.data import copies, remote
from jxfer.errors import UserError


def main(args: list[str]) -> int:
    """Runs `jxfer report ARGS` and returns the exit code."""

    def write(folder: tyro.conf.Positional[pathlib.Path], out: pathlib.Path | None = None) -> int:
        """Report a sweep of jxfer ablate, or a run of jxfer train.

        Of a sweep: report.md, LaTeX and CSV tables, figures, and a page with all of it, which
        needs no network. Of a run: its curves, and what its model does on the test images.

        Args:
          folder: Of the sweep, with results.json, or of the run, with summary.json; or the gs://
            address of a run.
          out: Where the report goes; FOLDER/report unless given.
        """
        if address := remote.address(folder):
            if out is None:
                raise UserError(f"{address}: say by --out which folder of this machine it goes to")
            folder = copies.local(folder)
        if (folder / "results.json").exists():
            from jxfer.report import sweep

            written = sweep.write(folder, out)
        elif (folder / "summary.json").exists():
            from jxfer.report import run

            written = run.write(folder, out)
        else:
            raise UserError(
                f"{folder} holds no results.json of jxfer ablate and no summary.json of a "
                "finished jxfer train"
            )
        print(f"see {written}/index.html")
        return 0

    return tyro.cli(write, prog="jxfer report", args=args, config=(tyro.conf.FlagCreatePairsOff,))
