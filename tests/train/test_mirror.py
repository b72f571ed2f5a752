"""A run in a bucket, first with files that stand for one, then a real one, killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jxfer import disk
from jxfer.data import remote
from jxfer.errors import UserError
from jxfer.train import config as configs
from jxfer.train import mirror, run_folder
from tests import runs
from tests.train.conftest import ROOT

RUN = "gs://some-bucket/runs/first"
NEVER = 3600.0


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """`machine(name)`: from now on, this is the machine of that name."""

    def become(name):
        monkeypatch.setenv("JXFER_CACHE", str(tmp_path / name))

    become("one")
    return become


def train(folder, *steps):
    """What the loop leaves in a folder when it has come to these checkpoints."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for step in steps:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {step}}}\n')
        (folder / f"checkpoints/{step}/state").mkdir(parents=True)
        (folder / f"checkpoints/{step}/state/data").write_text(f"of step {step}")
    (folder / "checkpoints/99.orbax-checkpoint-tmp-1").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints/99.orbax-checkpoint-tmp-1/data").write_text("half")


def finish(folder):
    (folder / "model").mkdir()
    for name in ("model/card.json", "timing.json", "summary.json"):
        (folder / name).write_text(name)


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def resume_elsewhere(machine, name="two"):
    machine(name)
    with mirror.mirrored(RUN, every=NEVER) as folder:
        return folder


def test_a_folder_of_this_machine_is_taken_as_it_is(tmp_path):
    with mirror.mirrored(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"


def test_what_arrives_can_be_resumed_at_any_moment(bucket, machine):
    with mirror.mirrored(RUN, every=NEVER) as folder:
        assert folder.name == "first"  # the name of the model's card
        assert not folder.exists()  # as a new run expects it
        train(folder, 6, 9)
        finish(folder)
    order = [name.removeprefix("runs/first/") for name in bucket.writes]
    assert order == [
        "mirror.json",
        "config.json",
        "metrics.jsonl",
        "checkpoints/6/state/data",
        "checkpoints/9/state/data",
        "mirror.json",
        "model/card.json",
        "timing.json",
        "summary.json",
    ]
    marker = json.loads(remote.read(f"{RUN}/mirror.json"))
    assert marker["checkpoints"] == ["6", "9"]
    found = resume_elsewhere(machine)
    assert found != folder
    assert files(found) == {name for name in order if name != "mirror.json"}


def test_what_a_kill_cut_off_is_not_fetched(bucket, machine):
    with mirror.mirrored(RUN, every=NEVER) as folder:
        train(folder, 6)
    remote.write(f"{RUN}/checkpoints/9/state/data", b"of a checkpoint that is not whole")
    remote.write(f"{RUN}/checkpoints/9/state/more", b"and of another try")
    remote.write(f"{RUN}/model/card.json", b"of a model that is not whole")
    found = resume_elsewhere(machine)
    assert files(found) == {"config.json", "metrics.jsonl", "checkpoints/6/state/data"}
    with mirror.mirrored(RUN, every=NEVER) as again:
        train(again, 9)
        shutil.rmtree(again / "checkpoints" / "6")
    assert bucket.names("runs/first/checkpoints") == ["runs/first/checkpoints/9/state/data"]


def test_the_machine_that_was_last_keeps_what_the_bucket_lacks(bucket, machine):
    with mirror.mirrored(RUN, every=NEVER) as folder:
        train(folder, 6)
    train(folder, 9)  # a kill: not sent
    with mirror.mirrored(RUN, every=NEVER) as again:
        assert again == folder
        assert (folder / "checkpoints" / "9").exists()
        assert "runs/first/checkpoints/9/state/data" in bucket.names()


def test_of_two_machines_the_first_is_told(bucket, machine, one_line, caplog):
    with mirror.mirrored(RUN, every=NEVER) as first:
        train(first, 6)
    told = one_line("another machine trains this run", "end one", str(first))
    with told, mirror.mirrored(RUN, every=NEVER):
        train(first, 9)
        machine("two")
        with mirror.mirrored(RUN, every=NEVER) as second:
            train(second, 12)
    machine("one")
    with mirror.mirrored(RUN, every=NEVER):
        assert sorted(path.name for path in (first / "checkpoints").iterdir()) == ["12", "6"]
    assert "another machine has gone on with this run" in caplog.text


@pytest.mark.parametrize("who", ["another machine", "this one, whose answer was lost"])
def test_of_two_machines_that_begin_at_once_the_bucket_takes_one(
    who, bucket, machine, one_line, monkeypatch
):
    read = mirror._Sender._read_marker
    marker = {"writer": "another", "checkpoints": []}

    def read_too_early(self):
        found = read(self)
        if found is None:  # and now there is one
            marker["writer"] = "another" if who == "another machine" else self._own
            remote.write(f"{RUN}/mirror.json", json.dumps(marker).encode())
        return found

    told = one_line("another machine trains this run", "end one")
    outcome = told if who == "another machine" else contextlib.nullcontext()
    with outcome, mirror.mirrored(RUN, every=NEVER) as folder:
        monkeypatch.setattr(mirror._Sender, "_read_marker", read_too_early)
        train(folder, 6)
    arrived = json.loads(remote.read(f"{RUN}/mirror.json"))
    assert arrived["writer"] == marker["writer"]
    assert arrived["checkpoints"] == ([] if who == "another machine" else ["6"])
    assert (bucket.names() == ["runs/first/mirror.json"]) == (who == "another machine")


def test_a_command_that_changes_nothing_takes_the_run_from_nobody(bucket, machine):
    with mirror.mirrored(RUN, every=NEVER) as folder:
        train(folder, 6)
    written = list(bucket.writes)
    machine("two")
    with pytest.raises(UserError, match="another config"), mirror.mirrored(RUN, every=NEVER):
        raise UserError("another config")
    assert bucket.writes == written


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_failing_upload_warns_stops_nothing_and_is_an_error_at_the_end(bucket, caplog, one_line):
    told = one_line("not in the bucket", "503", "the same command sends the rest")
    with told, mirror.mirrored(RUN, every=0.01) as folder:
        bucket.status = 503
        train(folder, 6)
        deadline = time.monotonic() + 60
        while "not sent" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "WARNING" in caplog.text
        assert "not sent: gs://some-bucket" in caplog.text
    assert (folder / "checkpoints" / "6").exists()
    bucket.status = None
    with pytest.raises(SystemExit) as ended, mirror.mirrored(RUN, every=NEVER):
        raise SystemExit(75)  # preempted: what is new is sent all the same
    assert ended.value.code == 75
    assert "runs/first/checkpoints/6/state/data" in bucket.names()


def test_what_is_no_run_is_refused(bucket, one_line):
    with one_line("whole bucket"), mirror.mirrored("gs://some-bucket"):
        pass
    remote.write(f"{RUN}/notes.txt", b"of someone")
    with one_line(RUN, "holds other objects (notes.txt)"), mirror.mirrored(RUN):
        pass
    remote.delete(RUN, ["notes.txt"])
    with mirror.mirrored(RUN, every=NEVER) as folder:
        train(folder, 6)
        with one_line("another process"), mirror.mirrored(RUN):
            pass
    bucket.wipe()
    with one_line("no longer holds the run", "remove"), mirror.mirrored(RUN):
        pass
    with one_line("it takes a folder of this machine"), run_folder.open_run(RUN, None):
        pass


TRAIN = (
    "import pathlib, sys; from jxfer.train import loop, mirror, run_folder\n"
    "config = run_folder.read_config(pathlib.Path(sys.argv[1]))\n"
    "with mirror.mirrored(sys.argv[2], every=0.1) as folder:\n"
    "    loop.run_config(config, folder, quiet=True)\n"
)


@pytest.mark.slow
def test_kill_9_and_another_machine_change_no_bit(
    small_config, bucket, machine, tmp_path, read_state, assert_same_bits
):
    config = small_config(epochs=16.0, eval_every=8.0)
    (tmp_path / "asked").mkdir()
    disk.write_json(tmp_path / "asked" / "config.json", configs.to_dict(config))

    def start(run):
        flag = "--xla_force_host_platform_device_count=1"
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path / "asked"), str(run)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flag},
            stderr=subprocess.PIPE,
            text=True,
        )

    straight = tmp_path / "first"
    undisturbed = start(straight)
    _, output = undisturbed.communicate()
    assert undisturbed.returncode == 0, output

    def arrived():
        marker = remote.read(f"{RUN}/mirror.json")
        return marker is not None and json.loads(marker)["checkpoints"]

    first = start(RUN)
    while first.poll() is None and not arrived():
        time.sleep(0.01)
    first.kill()
    _, complaint = first.communicate()
    assert first.returncode == -signal.SIGKILL, complaint
    assert "runs/first/summary.json" not in bucket.names()

    machine("two")
    second = start(RUN)
    _, output = second.communicate()
    assert second.returncode == 0, output
    assert "resumes from step" in output

    found = resume_elsewhere(machine, "three")
    state, wanted = read_state(config, found), read_state(config, straight)
    assert int(state.step) == int(wanted.step) == 36
    assert_same_bits(state.params, wanted.params)
    assert_same_bits(state.batch_stats, wanted.batch_stats)
    assert runs.summary(found) == runs.summary(straight)
    assert runs.lines(found) == runs.lines(straight)
    assert run_folder.read_config(found) == config
