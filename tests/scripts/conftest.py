"""Stand-ins for `gcloud`, `srun` and `scontrol` that record their calls and play back answers."""

import dataclasses
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Bash, since a start of Python would take most of a test's time. `answers` has a line for each: the
# first words of a command, exit code, output, stderr. The last one of a command stands for all that
# follow.
STUB = r"""#!/usr/bin/env bash
cd "FOLDER" || exit 99
name=${0##*/}
printf '%s\x1f' "$name" "$@" >>calls
printf '\x1e' >>calls
mapfile -t lines <answers
for i in "${!lines[@]}"; do
  IFS=$'\x1f' read -r start code out err <<<"${lines[i]}"
  [[ "$name $*" == "$start"* ]] || continue
  for later in "${lines[@]:i+1}"; do
    if [[ $later == "$start"$'\x1f'* ]]; then
      unset 'lines[i]'
      printf '%s\n' "${lines[@]}" >answers
      break
    fi
  done
  if [[ -n $out ]]; then echo "$out"; fi
  if [[ -n $err ]]; then echo "$err" >&2; fi
  exit "$code"
done
"""


@dataclasses.dataclass
class Stubs:
    folder: pathlib.Path

    def add(self, *names: str) -> None:
        """Stands in for programs of these names."""
        for name in names:
            file = self.folder / name
            file.write_text(STUB.replace("FOLDER", str(self.folder)))
            file.chmod(0o755)

    def answer(self, answers: dict[str, list]) -> None:
        """By the first words of a command: exit codes, texts that it prints, or (code, stderr)."""
        lines = []
        for start, queue in answers.items():
            for answer in queue:
                code = answer if isinstance(answer, int) else 0
                out = answer if isinstance(answer, str) else ""
                err = ""
                if isinstance(answer, tuple):
                    code, err = answer
                lines.append("\x1f".join([start, str(code), out, err]))
        (self.folder / "answers").write_text("".join(f"{line}\n" for line in lines))

    @property
    def calls(self) -> list[list[str]]:
        """What was called, in order, each with its arguments."""
        record = self.folder / "calls"
        text = record.read_text() if record.exists() else ""
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """A command in a folder of its own, with the stubs first on its PATH."""
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            words,
            cwd=self.folder.parent,
            env={**os.environ, "PATH": path, "JXFER_POLL": "0", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def stubs(tmp_path: pathlib.Path) -> Stubs:
    folder = tmp_path / "stubs"
    folder.mkdir()
    made = Stubs(folder)
    made.add("gcloud", "srun", "scontrol")
    made.answer({})
    return made
