"""The committed page of the strategies is the one that their results give."""

import importlib.util
import pathlib
import shutil

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"


def test_the_page_is_what_the_results_give(tmp_path):
    spec = importlib.util.spec_from_file_location("strategies", EXPERIMENTS / "strategies.py")
    strategies = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(strategies)
    for file in (EXPERIMENTS / "results").glob("strategies-*.json"):
        shutil.copy(file, tmp_path)
    strategies.write_page(tmp_path)
    committed = (EXPERIMENTS / "results" / "strategies.md").read_text()
    assert (tmp_path / "strategies.md").read_text() == committed
