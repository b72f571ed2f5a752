"""What the hosts' shells get from `scripts/tpu_vm.sh`, in a shell of this machine."""

import os
import signal
import subprocess
import sys
import tarfile

from tests.scripts.test_tpu_vm import COMMAND, READY, remote, run


def host(tmp_path):
    """The home of a host on which jxfer prints its arguments and where it stands."""
    home = tmp_path / "home"
    (home / "jxfer").mkdir(parents=True)
    program = home / "jxfer-env" / "bin" / "jxfer"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\nexit 75\n')
    program.chmod(0o755)
    return home


def test_the_hosts_shell_gets_the_words_as_they_were_and_passes_the_exit_code_on(stubs, tmp_path):
    stubs.answer(READY)
    run(stubs)
    home = host(tmp_path)
    result = subprocess.run(
        ["bash", "-c", remote(stubs.calls[-1])],
        cwd=home,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 75, result.stderr
    assert result.stdout.splitlines() == [str(home / "jxfer"), *COMMAND[1:]]


SAVES_FOR_HALF_A_SECOND = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))
print("up", flush=True)
time.sleep(60)
"""


def test_jxfer_on_a_host_saves_at_a_shutdown_whose_sigterm_is_followed_by_sighup(stubs, tmp_path):
    stubs.answer(READY)
    run(stubs)
    home = host(tmp_path)
    program = home / "jxfer-env" / "bin" / "jxfer"
    program.write_text(f"#!{sys.executable}\n{SAVES_FOR_HALF_A_SECOND}")
    with subprocess.Popen(
        ["bash", "-c", remote(stubs.calls[-1])],
        cwd=home,
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdout.readline() == b"up\n"
        session.send_signal(signal.SIGTERM)
        session.send_signal(signal.SIGHUP)
        assert session.wait(30) == 75


def test_a_host_that_is_still_at_work_makes_its_successor_wait(stubs, tmp_path):
    stubs.answer(READY)
    run(stubs)
    home = host(tmp_path)
    command = remote(stubs.calls[-1]).replace("-w 900", "-w 0")
    with subprocess.Popen(
        ["flock", home / "jxfer.lock", "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        environment = {**os.environ, "HOME": str(home)}
        late = subprocess.run(
            ["bash", "-c", command], cwd=home, env=environment, stdout=subprocess.PIPE
        )
        assert (late.returncode, late.stdout) == (75, b"")
        holder.communicate()


def test_a_second_installation_on_a_host_leaves_the_mount_alone(stubs, tmp_path):
    """Not even root may look into a mounted bucket."""
    stubs.answer(READY)
    run(stubs, "--bucket", "gs://runs-of-mine")
    command = remote(next(call for call in stubs.calls if call[4] == "ssh"))
    home = tmp_path / "home"
    home.mkdir()
    (home / "constraints.txt").touch()
    with tarfile.open(home / "jxfer.tar.gz", "w:gz") as archive:
        archive.add(home / "constraints.txt", "constraints.txt")
    (stubs.folder / "calls").unlink()
    stubs.add("uv", "gcsfuse", "sudo", "mountpoint")
    stubs.answer({"mountpoint": [1, 0]})
    for expected in (
        ["uv", "uv", "mountpoint", "sudo", "sudo", "gcsfuse"],
        ["uv", "uv", "mountpoint"],
    ):
        result = stubs.run("bash", "-c", f"cd {home} && {command}", HOME=str(home))
        assert result.returncode == 0, result.stderr
        assert [call[0] for call in stubs.calls] == expected
        assert (home / "jxfer" / "constraints.txt").exists()
        (stubs.folder / "calls").unlink()
