"""`scripts/tpu_vm.sh` against a `gcloud` that records its calls and plays back states."""

import pathlib
import subprocess
import tarfile

import pytest

from tests.scripts.conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "tpu_vm.sh")
WHERE = ("--name", "slice", "--zone", "us-west4-a")
KIND = ("--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite")
COMMAND = ("jxfer", "train", "--run", "/mnt/jxfer/it's a run", "--optimizer.lr", "0.1")

TPUS = "gcloud compute tpus "
QUEUE = TPUS + "queued-resources describe"
NODE = TPUS + "tpu-vm describe"
SSH = TPUS + "tpu-vm ssh"
SCP = TPUS + "tpu-vm scp"
GONE = (1, "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource")
DENIED = (1, "ERROR: PERMISSION_DENIED on slice")
READY = {QUEUE: ["ACTIVE"], NODE: ["READY"]}


def run(stubs, *options, poll="0"):
    return stubs.run(
        SCRIPT, "run", *WHERE, *KIND, "--spot", *options, "--", *COMMAND, JXFER_POLL=poll
    )


def steps(stubs):
    """The calls in short: `queue`, `node`, `create`, `delete`, `scp`, `install`, `run`."""
    found = []
    for call in stubs.calls:
        assert call[:3] == ["gcloud", "compute", "tpus"]
        assert "--zone=us-west4-a" in call
        kind, verb = call[3:5]
        assert call[5] == ("slice" if verb != "scp" else call[5])
        if verb == "describe":
            verb = {"queued-resources": "queue", "tpu-vm": "node"}[kind]
        elif verb == "ssh":
            verb = "install" if "uv pip install" in remote(call) else "run"
        found.append(verb)
    return found


def remote(call):
    """What the hosts' shells get."""
    [command] = [word for word in call if word.startswith("--command=")]
    return command.removeprefix("--command=")


def test_create_asks_for_a_spot_slice(stubs):
    assert stubs.run(SCRIPT, "create", *WHERE, *KIND, "--spot", "--project", "mine").returncode == 0
    expected = (
        "gcloud compute tpus queued-resources create slice --node-id=slice"
        " --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
        " --zone=us-west4-a --project=mine"
    )
    assert stubs.calls == [expected.split()]


def test_delete_takes_the_nodes_along_and_asks_nothing(stubs):
    assert stubs.run(SCRIPT, "delete", *WHERE).returncode == 0
    expected = "gcloud compute tpus queued-resources delete slice --force --quiet --zone=us-west4-a"
    assert stubs.calls == [expected.split()]


def test_a_run_waits_for_the_slice_then_installs_and_runs_on_all_hosts(stubs):
    waiting = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    stubs.answer({QUEUE: waiting, NODE: ["CREATING", "READY"]})
    result = run(stubs)
    assert result.returncode == 0, result.stderr
    assert steps(stubs) == ["queue", "queue", *["queue", "node"] * 2, "scp", "install", "run"]
    for call in stubs.calls[-3:]:
        assert "--worker=all" in call


def test_the_output_of_the_command_is_passed_on(stubs):
    stubs.answer({**READY, SSH: ["installed", "step 10 loss 0.5"]})
    assert "step 10 loss 0.5" in run(stubs).stdout


def test_the_command_is_run_again_after_exit_75(stubs):
    stubs.answer({**READY, SSH: [0, 75, 0, 75, 0, 0]})
    result = run(stubs)
    assert result.returncode == 0, result.stderr
    once = ["queue", "node", "scp", "install", "run"]
    assert steps(stubs) == once * 3
    commands = {remote(call) for call in stubs.calls if call[4] == "ssh"}
    assert len(commands) == 2  # the installation, and the command: the same one each time


def test_a_suspended_slice_is_made_anew_after_a_preemption(stubs):
    stubs.answer(
        {
            QUEUE: ["ACTIVE", "SUSPENDING", "SUSPENDED", "PROVISIONING", "ACTIVE"],
            NODE: ["READY"],
            SSH: [0, 75, 0, 0],
        }
    )
    result = run(stubs)
    assert result.returncode == 0, result.stderr
    assert steps(stubs) == [
        *("queue", "node", "scp", "install", "run"),
        *("queue", "queue", "delete", "create", "queue"),
        *("queue", "node", "scp", "install", "run"),
    ]
    [creation] = [call for call in stubs.calls if call[4] == "create"]
    assert "--spot" in creation
    assert "--accelerator-type=v5litepod-16" in creation


@pytest.mark.parametrize(
    "vanished", [{NODE: ["READY", "PREEMPTED", "READY"]}, {NODE: ["READY", GONE, "READY"]}]
)
@pytest.mark.parametrize("code", [1, 134, 255])
def test_a_run_whose_node_vanished_is_run_again_whatever_its_exit_code(stubs, vanished, code):
    stubs.answer({QUEUE: ["ACTIVE"], **vanished, SSH: [0, code, 0, 0]})
    result = run(stubs)
    assert result.returncode == 0, result.stderr
    assert steps(stubs).count("run") == 2


def test_a_slice_that_goes_during_the_installation_is_waited_for(stubs):
    stubs.answer({QUEUE: ["ACTIVE", GONE, "ACTIVE"], NODE: ["READY"], SCP: [1, 0]})
    result = run(stubs)
    assert result.returncode == 0, result.stderr
    assert steps(stubs) == [
        "queue",
        "node",
        "scp",
        "queue",
        "queue",
        "node",
        "scp",
        "install",
        "run",
    ]


@pytest.mark.parametrize(
    ("code", "asked"), [(2, []), (1, ["queue", "node"]), (134, ["queue", "node"])]
)
def test_an_error_on_a_slice_that_is_up_is_no_preemption(stubs, code, asked):
    stubs.answer({QUEUE: ["ACTIVE"], NODE: ["READY\t1"], SSH: [0, code]})
    assert run(stubs).returncode == code
    assert steps(stubs) == ["queue", "node", "scp", "install", "run", *asked]


@pytest.mark.parametrize(("then", "code"), [([0], 0), ([75, 0, 2, 0, 0], 0), ([2], 2)])
def test_code_2_of_several_hosts_may_be_a_lost_connection_and_is_tried_once_more(stubs, then, code):
    stubs.answer({QUEUE: ["ACTIVE"], NODE: ["READY\t4"], SSH: [0, 2, 0, *then]})
    assert run(stubs).returncode == code
    assert steps(stubs).count("run") == len(then) // 2 + 2


def test_a_lost_connection_is_tried_again_but_not_for_ever(stubs):
    stubs.answer({**READY, SSH: [0, 255, 0, 255, 0, 0]})
    assert run(stubs).returncode == 0
    assert steps(stubs).count("run") == 3
    stubs.answer({**READY, SSH: [255]})
    assert run(stubs).returncode == 255


def test_a_slice_that_is_not_there_is_asked_for(stubs):
    stubs.answer({QUEUE: [GONE, "ACTIVE"], NODE: ["READY"]})
    assert run(stubs).returncode == 0
    assert steps(stubs)[:2] == ["queue", "create"]


@pytest.mark.parametrize(
    ("answers", "anew"),
    [
        ({QUEUE: ["FAILED"]}, 9),
        ({QUEUE: ["FAILED", "ACCEPTED"] * 9 + ["FAILED"]}, 9),
        ({QUEUE: [DENIED]}, 0),
        ({QUEUE: ["ACTIVE"], NODE: [DENIED]}, 0),
        ({QUEUE: ["ACTIVE"], NODE: ["UNKNOWN\t4"]}, 0),
        ({QUEUE: ["ACTIVE"], NODE: [GONE]}, 0),
    ],
)
def test_waiting_ends_where_it_leads_nowhere(stubs, answers, anew):
    stubs.answer(answers)
    result = run(stubs)
    assert result.returncode == 1
    assert "10 times; ask why by: gcloud compute tpus queued-resources describe" in result.stderr
    assert steps(stubs).count("create") == anew
    assert ("PERMISSION_DENIED" in result.stderr) == (DENIED in [*answers.values()][-1])


def test_failures_are_counted_in_a_row(stubs):
    waiting = [*[DENIED] * 9, "WAITING_FOR_RESOURCES"] * 2
    gone = [*[GONE] * 9, "REPAIRING", *[GONE] * 9]
    stubs.answer({QUEUE: [*waiting, "ACTIVE"], NODE: [*gone, "READY"]})
    result = run(stubs)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_slice_whose_node_stays_preempted_is_made_anew(stubs, state):
    stubs.answer({QUEUE: ["ACTIVE"], NODE: [*[state] * 10, "READY"]})
    assert run(stubs).returncode == 0
    remade = ["queue", "node"] * 10 + ["delete", "create"]
    assert steps(stubs) == [*remade, "queue", "node", "scp", "install", "run"]


def test_a_slice_that_cannot_be_asked_for_ends_the_run(stubs):
    stubs.answer({QUEUE: [GONE], TPUS + "queued-resources create": [(1, "ERROR: Quota exceeded")]})
    result = run(stubs)
    assert result.returncode == 1
    assert "Quota exceeded" in result.stderr
    assert steps(stubs) == ["queue", "create"]


def test_the_archive_holds_what_git_tracks_with_its_changes(stubs, tmp_path):
    """Of a repository of its own, so that the real one is not touched."""
    repository = tmp_path / "checkout"
    (repository / "scripts").mkdir(parents=True)
    script = repository / "scripts" / "tpu_vm.sh"
    script.write_bytes(pathlib.Path(SCRIPT).read_bytes())
    (repository / "known").write_text("before")

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(
            ["git", *identity, *words], cwd=repository, check=True, stdout=subprocess.DEVNULL
        )

    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (repository / "known").write_text("after")
    (repository / "unknown").write_text("not tracked")
    keep = stubs.folder / "kept.tar.gz"
    stub = stubs.folder / "gcloud"
    stub.write_text(f'#!/bin/sh\n[ "$4" != scp ] || cp "$5" {keep}\n')
    words = ("bash", str(script), "install", *WHERE)
    assert stubs.run(*words).returncode == 0
    with tarfile.open(keep) as archive:
        assert set(archive.getnames()) == {"known", "scripts", "scripts/tpu_vm.sh"}
        assert archive.extractfile("known").read() == b"after"


def test_a_dry_run_prints_the_commands_of_the_real_run_and_runs_none(stubs, tmp_path):
    options = ("--bucket", "gs://runs-of-mine")
    dry = run(stubs, *options, "--dry-run")
    assert dry.returncode == 0
    assert stubs.calls == []
    states = ["SUSPENDED", "ACTIVE"]
    stubs.answer({QUEUE: states, NODE: ["READY"]})
    assert run(stubs, *options).returncode == 0
    real = stubs.calls
    (stubs.folder / "calls").unlink()
    assert stubs.run("bash", "-euc", dry.stdout).returncode == 0
    pasted = stubs.calls
    assert (tmp_path / "jxfer.tar.gz").exists()

    def comparable(calls):
        """Without the archive's folder, each call once."""
        return {
            tuple(w if not w.endswith(".tar.gz") else pathlib.Path(w).name for w in c)
            for c in calls
        }

    assert comparable(pasted) == comparable(real)
    assert "gcsfuse" in dry.stdout
    assert "runs-of-mine /mnt/jxfer" in dry.stdout


@pytest.mark.parametrize("subcommand", ["create", "install", "delete"])
def test_every_subcommand_has_a_dry_run(stubs, tmp_path, subcommand):
    words = (SCRIPT, subcommand, *WHERE, *(KIND if subcommand == "create" else ()))
    dry = stubs.run(*words, "--dry-run")
    assert (dry.returncode, stubs.calls) == (0, [])
    assert dry.stdout.startswith(("gcloud", "tree=$(git"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("make", *WHERE), "no subcommand make"),
        (("create", *WHERE), "create needs --type"),
        (("install", "--name", "a"), "install needs --zone"),
        (("create", "--name"), "--name needs a value"),
        (("create", "--name", "--spot"), "--name needs a value"),
        (("delete", *WHERE, "--sport"), "no option --sport"),
        (("run", *WHERE, *KIND), "run needs a command after --"),
        (("delete", *WHERE, "--", "ls"), "delete takes no command"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(stubs, words, message):
    result = stubs.run(SCRIPT, *words)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert message in line
    assert stubs.calls == []
