"""README's Python example runs as it stands, and its verdicts are those of the tables."""

import collections
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
VERDICTS = ("reproduced", "contradicted", "underpowered")


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


def test_each_table_stands_with_the_verdicts_that_came_out():
    rows = re.findall(r"^\| `(\w+)\.py` \|.*\| (.*) \|$", README.read_text(), re.MULTILINE)
    told = dict(rows)
    files = (ROOT / "experiments/results").glob("*/results.json")
    results = {file.parent.name: json.loads(file.read_text()) for file in files}
    for name, cell in told.items():
        if name not in results:
            assert cell == "not yet run in full"
            continue
        counts = collections.Counter(claim["verdict"] for claim in results[name]["claims"])
        text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        assert cell == f"[{text}](experiments/results/{name}/report.md)"
        assert (ROOT / f"experiments/results/{name}/report.md").is_file()
    assert results.keys() <= told.keys()
