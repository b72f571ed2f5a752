"""The command line as a person meets it: the main job."""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from jxfer.commands import main as commands_main
from jxfer.commands import train
from jxfer.commands.main import COMMANDS, main
from jxfer.train import run_folder
from jxfer.zoo import store

TRAIN = (
    *("--epochs", "2", "--batch-size", "8"),
    *("--model.arch", "resnet20", "--model.through", "stage1"),
)


def train_command(run, images):
    source = ("--run", str(run), "--data.source", f"folder:{images}")
    return ["train", *source, *TRAIN, "--strategy.name", "scratch", "--optimizer.lr", "0.05"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished run, with a trace of some of its steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*train_command(folder, images), "--json", "--profile"]) == 0
    return folder


def test_the_run_folder_holds_what_the_contract_lists(run):
    expected = {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
        "timing.json",
        "model",
    }
    names = {path.name for path in run.iterdir()}
    assert expected <= names
    assert any(name.startswith("events") for name in names)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == ["ants", "bees", "cats"]
    assert (summary["train_examples"], summary["test_examples"]) == (36, 12)
    assert summary["test_accuracy"] == summary["test_correct"] / 12
    assert summary["parameters"]["frozen"] == 0
    assert summary["frozen_unchanged"] is None
    assert not any("second" in key or "time" in key for key in summary)
    timing = json.loads((run / "timing.json").read_text())
    assert set(timing["seconds"]) == {"compile", "data_wait", "step", "eval", "prefix", "total"}
    assert timing["steps"] == summary["steps"]
    assert 0 <= timing["data_wait_share"] <= 1


def test_a_long_wait_for_data_comes_with_advice():
    assert train._waiting({"data_wait_share": None}) == ""
    short = train._waiting({"data_wait_share": 0.04})
    assert short == "waited for data 4% of the training loop's time"
    assert "--cache.images-gb" in train._waiting({"data_wait_share": 0.5})


def test_a_trace_holds_the_steps_after_compilation(run):
    """The third to the seventh of nine, in Perfetto's file and beside it TensorBoard's."""
    (trace,) = run.glob("plugins/profile/*/*.trace.json.gz")
    (xplane,) = run.glob("plugins/profile/*/*.xplane.pb")
    assert xplane.stat().st_size > 0
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [3, 4, 5, 6, 7]
    names = {event.get("name", "") for event in events}
    assert any("convolution" in name for name in names)
    assert "profile" not in (run / "config.json").read_text()


def test_a_finished_run_does_without_its_times(run, images, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "timing.json").unlink()
    assert main(train_command(copy, images)) == 0
    assert f"{copy} has finished" in capsys.readouterr().err


def test_a_finished_run_says_so(run, images, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert main(train_command(run, images)) == 0
    assert "has finished" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_evaluate_agrees_with_the_summary(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    assert figures["correct"] == summary["test_correct"]
    assert figures["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    low, high = figures["accuracy_interval"]
    assert low <= figures["accuracy"] <= high


@pytest.mark.slow
def test_a_run_and_images_in_a_bucket_are_those_of_a_disk(run, images, bucket, capsys, fails):
    capsys.readouterr()
    found = []
    for model, data in (
        (str(run), images),
        (bucket.upload(run, "runs/run"), bucket.upload(images, "images")),
    ):
        assert main(["evaluate", model, "--data.source", f"folder:{data}", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1].pop("model") == "gs://some-bucket/runs/run"
    assert found[1].pop("data") == "folder:gs://some-bucket/images"
    assert found[1].items() <= found[0].items()

    run_again = train_command("gs://some-bucket/runs/run", images)
    line = fails(run_again)  # it is no mirror, but somebody's files
    assert "holds other objects" in line
    assert main([*train_command("gs://some-bucket/runs/new", images), "--json"]) == 0
    local = run_folder.read_summary(run)
    there = json.loads(capsys.readouterr().out)
    assert {**there, "commit": None} == {**local, "commit": None}
    assert "runs/new/model/card.json" in bucket.names()


def test_what_a_bucket_cannot_do_is_one_line(images, bucket, fails, tmp_path):
    assert "--out" in fails(["report", "gs://some-bucket/runs/run"])
    bucket.status = 404
    line = fails(train_command("gs://some-bucket/runs/run", images))
    assert "there is no bucket some-bucket" in line
    options = train_command(tmp_path / "run", "gs://some-bucket/images")
    assert "there is no bucket some-bucket" in fails(options)
    line = fails(["lr-find", *options[3:], "--out", "gs://some-bucket/sweep"])
    assert "--out gs://some-bucket/sweep: it takes a folder of this machine" in line


def test_predict_agrees_with_evaluate(run, images, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    correct = json.loads(capsys.readouterr().out)["correct"]
    assert main(["predict", str(run), str(images / "test"), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 12
    assert sum(record["class"] in record["image"] for record in records) == correct
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["probability"] == max(record["probabilities"].values())


def test_predict_shows_names_and_probabilities(run, images, capsys):
    image = images / "test" / "bees" / "00.png"
    assert main(["predict", str(run), str(image), "--top", "2"]) == 0
    header, row = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["image", "1.", "2."]
    assert str(image) in row
    assert row.count("%") == 2


def test_another_run_starts_from_a_run(run, images, tmp_path, capsys):
    args = ("--run", str(tmp_path / "next"), "--data.source", f"folder:{images}")
    more = ("--model.weights", str(run), "--strategy.name", "linear_probe", "--epochs", "1")
    assert main(["train", *args, *more, "--batch-size", "8", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frozen_unchanged"] is True
    assert sorted(summary["reinitialised"]) == [
        "params/head/linear/bias",
        "params/head/linear/kernel",
    ]
    (parent,) = store.read_card(tmp_path / "next" / "model").parents
    assert parent.name == "run"


def test_a_wrong_class_count(run, images, tmp_path, fails):
    two = tmp_path / "two"
    for name in ("ants", "bees"):
        shutil.copytree(images / "train" / name, two / name)
    line = fails(["evaluate", str(run), "--data.source", f"folder:{two}"])
    assert "3 classes and the data has 2" in line
    assert "cats" in line
    line = fails([
        "train", "--run", str(tmp_path / "r"), "--data.source", f"folder:{two}",
        "--model.weights", str(run), "--model.head", "keep", "--batch-size", "8",
    ])  # fmt: skip
    assert "3 classes and the data has 2" in line


def test_the_public_api_is_complete():
    import jxfer

    for name in dir(jxfer):
        assert getattr(jxfer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jxfer.nothing  # noqa: B018


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_causes_no_traceback():
    command = [sys.executable, "-m", "jxfer", "zoo", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


HEAVY = "jax jaxlib flax optax orbax tensorflow_datasets grain cv2 sklearn matplotlib numpy tyro"


@pytest.mark.parametrize("args", [["--help"], ["no-such-command"]])
def test_help_and_a_typo_import_nothing_heavy(args):
    code = (
        "import sys, jxfer, jxfer.commands.main as main; main.main(sys.argv[1:]); "
        f"sys.exit(' '.join(set('{HEAVY}'.split()) & set(sys.modules)) or 0)"
    )
    shown = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for command in COMMANDS:
        assert (f"  {command} " in shown.stdout) == (args == ["--help"])


def test_the_table_of_commands_holds_every_command():
    """A module of the package is a command, a part of one (zoo_diff, predict_dense), or main."""
    folder = pathlib.Path(commands_main.__file__).parent
    modules = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"main", "--init--"}
    assert set(COMMANDS) <= modules
    assert all(name.partition("-")[0] in COMMANDS for name in modules - set(COMMANDS))
    for name in COMMANDS:
        text = (folder / f"{name.replace('-', '_')}.py").read_text()
        assert text.startswith(f'"""`jxfer {name}')
