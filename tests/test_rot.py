"""Each file of each folder, damaged in each way: harmless, or told in one line."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import huggingface_hub.constants
import pytest
import safetensors.numpy

from jxfer import trees
from jxfer.data import sources
from jxfer.data.readers import images_sha256
from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.probe import feature_writer
from jxfer.report import run_results
from jxfer.train.log import TrainingLog
from jxfer.zoo import store, weights
from jxfer.zoo.card import Card
from tests import rot, torch_reference
from tests.conftest import CLASSES
from tests.zoo.server import NAME, publish

ROOT = pathlib.Path(__file__).resolve().parent.parent
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def call(capfd):
    """Runs a command: (what it printed, JSON if so; None where it failed in one line; stderr)."""

    def run(*args):
        code, out, lines = rot.command(capfd, *args)
        errors = [line for line in lines if line.startswith("jxfer: error: ")]
        assert (code, len(errors)) in ((0, 0), (2, 1)), (code, lines)
        return (None if code else json.loads(out) if "--json" in args else out), lines

    return run


@pytest.fixture(scope="module")
def make_run(images, tmp_path_factory):
    """Arguments of a run of nine steps, with a checkpoint at every third."""

    def make(name):
        run = tmp_path_factory.mktemp(name) / "run"
        model = ("--model.arch", "resnet20", "--model.through", "stage1")
        recipe = ("--strategy.name", "scratch", "--optimizer.lr", "0.05", "--batch-size", "16")
        often = ("--epochs", "4", "--log-every", "2", "--checkpoint-every", "3", "--json")
        data = ("--data.source", f"folder:{images}")
        return run, ["train", "--run", str(run), *data, *model, *recipe, *often]

    return make


@pytest.fixture(scope="module")
def finished(make_run):
    run, args = make_run("finished")
    assert rot.main(args) == 0
    return run, args


@pytest.fixture(scope="module")
def unfinished(make_run):
    """A run that was interrupted at its eighth step, with checkpoints at 3 and 6."""
    run, args = make_run("unfinished")
    add = TrainingLog.add

    def stop(log, step, *others):
        waiting = add(log, step, *others)
        if step == 8:
            raise KeyboardInterrupt
        return waiting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "add", stop)
        assert rot.main(args) == 130
    assert steps(run) == {3, 6}
    return run, args


def steps(run):
    return {int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()}


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def left(run, last=9):
    """All that a run leaves but for the clock: figures, lines, and checksums of every leaf."""
    summary = json.loads((run / "summary.json").read_text())
    progress = json.loads((run / f"checkpoints/{last}/progress/metadata").read_text())
    card = json.loads((run / "model/card.json").read_text())
    figures = {k: v for k, v in summary.items() if k not in ("commit", "checksum")}
    return figures, progress["checksums"], card["tensors_sha256"], metrics(run)


def of_run(name):
    """A checkpoint is named by its step, a file of the model by its folder."""
    if name == "checkpoints":
        return "holds no checkpoint"
    if step := re.match(r"checkpoints/(\d+)", name):
        return rf"checkpoint {step[1]}\b.* is damaged"
    if name.startswith("model"):
        return r"/tensors: (damaged|missing)|model/card\.json|/model\b"
    return re.escape(name.split("/")[-1])


@slow
def test_the_folder_of_an_unfinished_run(unfinished, finished, scratch, call):
    """It ends with the bits of an undisturbed one; from which checkpoint is no secret."""
    run, args = unfinished
    wanted = left(finished[0])

    def resume():
        before = steps(run)
        result, lines = call(*args)
        if result is None:
            return None, lines
        said = "\n".join(lines)
        (started,) = re.findall(r"resumes from step (\d)", said) or ["0"]
        assert started != "0" or "holds no checkpoint; it begins again" in said
        for step in before - set(range(int(started) + 1)):
            assert f"checkpoint {step} is damaged" in said
        found = left(run)
        if any("metrics.jsonl is missing" in line for line in lines):
            assert found[-1] == [line for line in wanted[-1] if line["step"] > 6]
            found = (*found[:-1], wanted[-1])
        return found, lines

    rot.judge(run, scratch, resume, wanted, of_run).check()


@slow
@pytest.mark.parametrize("fault", rot.FAULTS)
@pytest.mark.parametrize("name", ["progress/metadata", "state/manifest.ocdbt"])
def test_where_all_checkpoints_are_rotten_nothing_starts_over(
    name, fault, unfinished, scratch, call
):
    run, args = unfinished
    with rot.copied(run, scratch):
        for step in (3, 6):
            rot.inflict(fault, run / "checkpoints" / str(step) / name)
        result, lines = call(*args)
        assert result is None
        assert "checkpoints: no checkpoint is intact; " in lines[-1]
        assert steps(run) == {3, 6}
        assert metrics(run) == metrics(scratch / "kept")


def no_checkpoint(name):
    """Nobody looks into those of a finished run: without the folder, all is as before."""
    return not name.startswith("checkpoints/")


@slow
def test_a_finished_run_trains_no_more(finished, scratch, call):
    run, args = finished

    def again():
        result, lines = call(*(arg for arg in args if arg != "--json"))
        if result is None:
            return None, lines
        table = [line for line in result.splitlines() if not line.startswith("waited for data")]
        return table, [line for line in lines if line.startswith("jxfer: ")]

    rot.judge(run, scratch, again, again()[0], of_run, no_checkpoint).check()


@slow
def test_a_finished_run_is_evaluated(finished, scratch, call):
    run, _ = finished
    args = ("evaluate", str(run), "--split", "val", "--json")
    wanted, _ = call(*args)
    rot.judge(run, scratch, lambda: call(*args), wanted, of_run, no_checkpoint).check()


@slow
def test_a_finished_run_is_reported(finished, scratch, capfd):
    """`run_results.read` is all that the report reads."""
    run, _ = finished

    def read():
        found = []

        def program():
            one = run_results.read(run)
            figures = (one.config, one.summary, one.timing, one.metrics, one.card, one.figures)
            found.append((figures, one.probabilities.tobytes(), one.correct))

        code, _, lines = rot.guarded(capfd, program)
        return (None if code else found[0]), lines

    rot.judge(run, scratch, read, read()[0], of_run, no_checkpoint).check()


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "small"
    model = registry.create("resnet20", len(CLASSES), through="stage1")
    store.save(folder, Card("small", "resnet20", CLASSES, CIFAR, through="stage1"), model.init(0))
    return folder


def of_entry(name):
    return r"/tensors: (damaged|missing)" if name.startswith("tensors") else r"card\.json|'small'"


@pytest.mark.parametrize("command", ["evaluate", "zoo show", pytest.param("train", marks=slow)])
def test_a_zoo_entry(command, entry, images, scratch, tmp_path, call, no_zoos):
    zoo, data = ("--zoo", str(entry.parent), "--json"), ("--data.source", f"folder:{images}")
    if command == "train":
        recipe = ("--strategy.name", "linear_probe", "--epochs", "0.4", "--batch-size", "16")
        args = ("--model.weights", str(entry), *data, *recipe)

        def read():
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            result, lines = call("train", "--run", str(run), *args, "--json")
            assert result is not None or not run.exists()
            return (None if result is None else left(run, last=1)), lines
    else:
        args = (*command.split(), "small", *zoo, *(data if command == "evaluate" else ()))

        def read():
            return call(*args)

    rot.judge(entry, scratch, read, read()[0], of_entry).check()


@pytest.fixture(scope="module")
def features(entry, images, tmp_path_factory):
    """Features of the training and of the validation images, by split."""
    root = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        assert rot.main(features_of(entry, images, root / split, split)) == 0
    return root


def features_of(entry, images, out, split):
    data = ("--data.source", f"folder:{images}", "--split", split, "--batch-size", "16")
    return ["features", str(entry), "--out", str(out), *data]


def test_a_feature_store(features, scratch, call):
    folders = [str(features / split) for split in ("train", "val")]
    args = ("probe", "--features", *folders, "--probe.kind", "knn", "--json")
    wanted, _ = call(*args)

    def names(name):
        """A folder without its manifest holds no features."""
        return rf"{name}\b|{name.split('/')[0]} holds no features|{name} is no folder"

    rot.judge(features, scratch, lambda: call(*args), wanted, names).check()


@slow
def test_a_feature_store_that_is_not_complete(features, entry, images, tmp_path, scratch, call):
    """What a kill left is taken up or computed again: the same bytes in the end."""
    out = tmp_path / "out"
    args = [*features_of(entry, images, out, "train"), "--json"]
    append = feature_writer._Parts.append

    def stop(parts, block):
        append(parts, block)
        if parts.rows == 32:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_writer._Parts, "append", stop)
        assert rot.main(args) == 130

    def files(folder):
        return {path.name: path.read_bytes() for path in folder.glob("*.npy")}

    def resume():
        result, lines = call(*args)
        return (None if result is None else files(out)), lines

    rot.judge(out, scratch, resume, files(features / "train"), re.escape).check()


@slow
def test_the_cache_of_a_frozen_prefix(entry, images, tmp_path, scratch, call, monkeypatch):
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path / "cache"))
    run, data = tmp_path / "run", ("--data.source", f"folder:{images}", "--batch-size", "16")
    recipe = ("--strategy.name", "linear_probe", "--epochs", "1", "--cache.mode", "shared")
    recipe = (*recipe, "--epochs", "2", "--model.weights", str(entry), "--json")

    def train():
        shutil.rmtree(run, ignore_errors=True)
        result, lines = call("train", "--run", str(run), *data, *recipe)
        return (None if result is None else left(run, last=5)), lines

    wanted, _ = train()
    cache = tmp_path / "cache" / "features"
    assert len(list(cache.rglob("features.bin"))) == 2
    rot.judge(cache, scratch, train, wanted, re.escape).check()


@pytest.fixture
def read_digits(capfd):
    """Of a source: (pixels, labels and names of all digits, or None; stderr)."""

    def read(*data):
        found = []

        def program():
            for split in ("train", "test"):
                source = sources.open_for_evaluation(sources.DataConfig(*data), split)
                found.append((images_sha256(source), source.labels.tobytes(), source.class_names))

        code, _, lines = rot.guarded(capfd, program)
        return (None if code else found), lines

    return read


@slow
def test_a_prepared_set(tmp_path, scratch, monkeypatch, read_digits):
    """TFDS gives its records checksums, and its names of classes none."""
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))
    read_digits("digits")
    folder = tmp_path / "embedded"
    (folder / "digits/1.0.0/checksums.json").unlink()

    def read():
        return read_digits("tfds:digits", str(folder))

    wanted, _ = read()
    without_names = lambda name: not name.endswith("labels.txt")  # noqa: E731
    rot.judge(folder, scratch, read, wanted, lambda _: r"digits\b", without_names).check()


@slow
def test_an_embedded_set(tmp_path, scratch, monkeypatch, read_digits):
    """Prepared again, saying so."""
    monkeypatch.setenv("JXFER_CACHE", str(tmp_path))

    def read():
        return read_digits("digits")

    wanted, _ = read()
    again = rot.judge(tmp_path / "embedded", scratch, read, wanted, lambda _: "digits/1.0.0")
    again.check()
    for name, found in again.table.items():
        if name.startswith("digits/1.0.0/"):
            assert "harmless" not in set().union(*found.values()), name


@slow
@pytest.mark.parametrize("offline", [False, True])
def test_the_cache_of_the_hub(offline, hub_server, tmp_path, scratch, capfd, monkeypatch):
    """What comes from the Hub has its hash, which is compared whenever it is used."""
    state = torch_reference.create("resnet20", 5).state_dict()
    content = safetensors.numpy.save({name: tensor.numpy() for name, tensor in state.items()})
    publish(hub_server, content)

    def read():
        found = []

        def program():
            one = weights.load(NAME)
            found.append((one.card, trees.sha256(one.variables)))

        code, _, lines = rot.guarded(capfd, program)
        return (None if code else found[0]), lines

    wanted, _ = read()
    if offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    names = r"(config\.json|model\.safetensors) is (damaged|not in the cache)"
    rot.judge(tmp_path / "hub", scratch, read, wanted, lambda _: names).check()


@slow
def test_the_folder_of_a_sweep(declare, tmp_path, scratch, call):
    """`jxfer ablate` again; a run's checkpoints and its model are read by no finished sweep.

    Without all of its cells it is a new one.
    """
    one = "arms=('short',), choices={'short': ({'lr': 0.05},)}, claims=(), seeds=(0,)"
    out = tmp_path / "out"
    args = ("ablate", str(declare(one)), "--out", str(out), "--json")

    def again():
        result, lines = call(*args)
        told = [line for line in lines if not line.startswith(("report: ", "1/1 "))]
        if result is None:
            return None, told
        (key,) = (cell["key"] for cell in result["cells"])
        page = (out / "report/index.html").read_text()
        # The command stands in the page unless the config is gone, which the page shows.
        (command,) = re.findall("jxfer train --run [^<]*", page) or [wanted_command]
        assert (out / f"cells/{key}/config.json").is_file() == ("jxfer train --run" in page)
        return [result, command, (out / "report/report.md").read_text()], told

    wanted_command = ""
    wanted, _ = again()
    wanted_command = wanted[1]
    assert "--optimizer.lr 0.05" in wanted_command
    (key,) = (cell["key"] for cell in wanted[0]["cells"])
    unread = tuple(f"cells/{key}/{part}/" for part in ("checkpoints", "model"))

    def only(name):
        return name != "cells" and not name.startswith(unread)

    rot.judge(out, scratch, again, wanted, re.escape, only).check()

    def report():
        result, lines = call("report", str(out))
        return (None if result is None else (out / "report/report.md").read_text()), lines

    of_report = lambda name: name == "results.json"  # noqa: E731
    rot.judge(out, scratch, report, wanted[2], re.escape, of_report).check()


PROGRAMS = """
import logging, os, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jxfer.train import program_cache
from tests import rot

told = []
class Keep(logging.Handler):
    def emit(self, record):
        told.append("jxfer: " + record.getMessage())
logging.getLogger("jxfer").addHandler(Keep())

def read():
    told.clear()
    jax.clear_caches()
    program_cache.switch_on()
    return np.asarray(jax.jit(jnp.linalg.qr)(np.arange(12.0).reshape(4, 3))[0]).tobytes(), [*told]

folder = pathlib.Path(os.environ["JXFER_CACHE"])
wanted, _ = read()
rot.judge(folder / "compiled", folder, read, wanted, lambda name: name.rpartition("/")[2]).check()
"""


@slow
@pytest.mark.parametrize("flips", [8])
def test_the_cache_of_compiled_programs(flips, tmp_path):
    """In a process of its own: what is run may crash."""
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {"JXFER_CACHE": str(tmp_path), "JXFER_COMPILED": "on", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS],
        env=inherited | environment | {"JXFER_ROT_FLIPS": str(flips)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    (program,) = (line for line in done.stdout.splitlines() if "-cache" in line)
    assert "compiling it again" in program
