"""The README's Python example runs as it stands."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.slow
def test_the_python_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # Eight fake devices: the example's default batch divides by them.
    exec(compile(example, "<example>", "exec"), {})
    out = capsys.readouterr().out
    (report,) = re.findall(r"print\(pretrained.report\)  # (.*)", example)
    assert report in out
    assert out.splitlines()[-1].endswith("True")
