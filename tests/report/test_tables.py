"""Tables in three notations, and what hostile text does to them."""

import csv
import io
import re
import shutil
import subprocess

import pytest

from jxfer.report import tables
from jxfer.report.page import Link, Number, Table

HOSTILE = "50% of $a_b$ & #1 {x} ~^ \\end{tabular} <i> | \x1b[31m*new*\nline"
TABLE = Table(
    "All of it",
    ["name", "accuracy, %", "file"],
    [
        [HOSTILE, Number("91.2 ± 0.8", 91.23456789, strong=True), Link("log", "../a.log")],
        ["[0.1]", Number("88", 88.0), "–"],
        ["*", "failed", ""],
    ],
    "A caption with 100 %.",
)


def test_markdown_keeps_one_row_a_line_and_shows_what_is_there():
    lines = tables.markdown(TABLE).splitlines()
    assert len(lines) == 5
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines)
    assert "**91.2 ± 0.8**" in lines[2]
    assert "[log](../a.log)" in lines[2]
    assert r"\<i\>" in lines[2]
    assert "\x1b" not in lines[2]


def test_latex_is_escaped_and_balanced():
    text = tables.latex(TABLE, "all")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrl}"):
        assert text.count(rule) == 1
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"50\% of \$a\_b\$ \& \#1 \{x\} \textasciitilde{}\textasciicircum{}" in text
    assert r"\textbackslash{}end\{tabular\}" in text
    assert r"\textbf{91.2 $\pm$ 0.8}" in text
    assert r"\caption{All of it. A caption with 100 \%.}" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = body.splitlines()[1:]
    assert len(rows) == len(TABLE.rows)
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2
        # An end of a row would take these two as its options.
        assert row[0] not in "[*"
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(tmp_path):
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
    document = f"{head}\\begin{{document}}\n{tables.latex(TABLE, 'all')}\\end{{document}}\n"
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_csv_comes_back_with_all_digits():
    rows = [['a,"b"\nc', 0.1 + 0.2, 7, None], ["1+1=2", -1e-300, -3, None]]
    header, *found = csv.reader(io.StringIO(tables.to_csv(["a", "b", "c", "d"], rows)))
    assert header == ["a", "b", "c", "d"]
    for row, (name, number, count, none) in zip(rows, found, strict=True):
        assert [name, float(number), int(count)] == row[:3]
        assert none == ""


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1"])
def test_no_text_of_csv_is_a_formula(name):
    """The six first signs that OWASP's "CSV Injection" lists."""
    for row in csv.reader(io.StringIO(tables.to_csv([name, "b"], [[name, -1], ["=", -0.5]]), "")):
        assert row[0][0] == "'"
        assert row[0][1:] in (name, "=")
        assert row[1] in ("b", "-1", "-0.5")
