"""Commands that are killed (-9) at random places, and started again, leave what calm ones leave."""

import pytest

from scripts import kill_anywhere, kill_commands, kill_compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("killed")
    kill_commands.prepare(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "kills"), [("train", 12), ("ablate", 4), ("features", 4), ("zoo import", 4)]
)
def test_kill_9_anywhere_changes_nothing(command, kills, folder):
    hits = kill_anywhere.run(command, kills, seed=0, folder=folder)
    assert sum(hits.values()) == kills


def test_what_is_missing_new_or_another_is_told(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for run in (calm, killed):
        (run / "model").mkdir(parents=True)
        speed = len(run.name)
        (run / "metrics.jsonl").write_text(f'{{"step": 2, "images_per_second": {speed}}}\n')
        (run / "summary.json").write_text('{"test_correct": 3}')
    wanted = kill_compare.contents(calm)
    assert kill_compare.differences(kill_compare.contents(killed), wanted) == []

    (killed / ".model.new-host-7").write_text("")
    (killed / "metrics.jsonl").write_text('{"step": 2}\n{"step": 2}\n')
    (killed / "summary.json").write_text('{"test_correct": 4}')
    (killed / "model").rmdir()
    assert kill_compare.differences(kill_compare.contents(killed), wanted) == [
        "missing: model",
        "left behind: .model.new-host-7",
        "metrics.jsonl: [{'step': 2}, {'step': 2}], undisturbed [{'step': 2}]",
        "summary.json: {'test_correct': 4}, undisturbed {'test_correct': 3}",
    ]
