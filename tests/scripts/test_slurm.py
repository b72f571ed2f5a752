"""`scripts/slurm.sbatch` against an `srun` and an `scontrol` that record their calls."""

import re
import shlex

import pytest

from tests.scripts.conftest import ROOT

SCRIPT = ROOT / "scripts" / "slurm.sbatch"
COMMAND = ["jxfer", "train", "--run", "runs/it's mine"]
LAUNCH = ["srun", "--kill-on-bad-exit=0", *COMMAND]
REQUEUE = ["scontrol", "requeue", "17"]


def submit(stubs, *words, **environment):
    return stubs.run("bash", str(SCRIPT), *words, SLURM_JOB_ID="17", **environment)


@pytest.mark.parametrize(
    ("code", "calls"),
    [(0, [LAUNCH]), (75, [LAUNCH, REQUEUE]), (2, [LAUNCH]), (1, [LAUNCH]), (143, [LAUNCH])],
)
def test_a_job_is_queued_again_after_exit_75_alone(stubs, code, calls):
    stubs.answer({"srun": [code]})
    result = submit(stubs, *COMMAND)
    assert result.returncode == code
    assert stubs.calls == calls


def test_a_requeued_job_runs_the_same_command_to_its_end(stubs):
    stubs.answer({"srun": [75, 0]})
    assert [submit(stubs, *COMMAND).returncode for _ in range(2)] == [75, 0]
    assert stubs.calls == [LAUNCH, REQUEUE, LAUNCH]


def test_a_job_that_cannot_be_queued_again_says_so(stubs):
    stubs.answer({"srun": [75], "scontrol": [(1, "Requeue is disabled")]})
    result = submit(stubs, *COMMAND)
    assert result.returncode != 0
    assert "Requeue is disabled" in result.stderr


def test_the_shell_outlives_the_signal_until_the_tasks_have_saved(stubs):
    """SLURM may signal the batch shell too. Here srun does so before it ends with 75."""
    stub = stubs.folder / "srun"
    stub.write_text(stub.read_text().replace('exit "$code"', 'kill -TERM $PPID; exit "$code"'))
    stubs.answer({"srun": [75]})
    assert submit(stubs, *COMMAND).returncode == 75
    assert stubs.calls == [LAUNCH, REQUEUE]


def test_tasks_get_the_cpus_of_the_job(stubs):
    assert submit(stubs, *COMMAND, SLURM_CPUS_PER_TASK="8").returncode == 0
    assert stubs.calls == [["srun", "--kill-on-bad-exit=0", "--cpus-per-task=8", *COMMAND]]


def test_a_dry_run_prints_both_commands_and_runs_none(stubs):
    result = submit(stubs, "--dry-run", *COMMAND)
    assert (result.returncode, stubs.calls) == (0, [])
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    assert [shlex.split(line) for line in lines] == [LAUNCH, REQUEUE]


def test_no_command_is_exit_code_2(stubs):
    result = submit(stubs)
    assert (result.returncode, stubs.calls) == (2, [])
    assert "usage" in result.stderr


def test_slurm_sends_the_signal_to_the_tasks_in_time_and_may_requeue():
    options = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.MULTILINE)
    assert "--requeue" in options
    [signal] = [option for option in options if option.startswith("--signal=")]
    assert re.fullmatch(r"--signal=TERM@\d+", signal)  # with B: it would reach the shell alone
