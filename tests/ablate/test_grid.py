"""Which runs a sweep has, and what its searches choose."""

from jxfer.ablate.cells import Record
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.experiment import Setting
from jxfer.ablate.grid import Grid
from tests.ablate.grids import RATES, config, experiment_of


def grid_of(**changes):
    return Grid(experiment_of(**changes))


def finished(accuracy):
    return Record("finished", measures={ACCURACY: 90.0}, score=accuracy)


def records_of(jobs, accuracy):
    """Each job's record; `accuracy` of the job, or None where it failed."""
    found = {}
    for job in jobs:
        value = accuracy(job)
        found[job.key] = Record("failed", error="no") if value is None else finished(value)
    return found


def test_the_search_comes_first_and_the_table_takes_its_best():
    grid = grid_of()
    tuning = grid.jobs({})
    assert {job.role for job in tuning} == {"tuning"}
    assert len(tuning) == 2 * 2 * 3 * 2
    assert {job.seed for job in tuning} == {100, 101}
    # 0.2 is the best by the mean, though 0.3 has the best single run.
    accuracy = {0.1: (0.5, 0.5), 0.2: (0.7, 0.7), 0.3: (0.95, 0.35)}
    records = records_of(tuning, lambda job: accuracy[job.choice["lr"]][job.seed - 100])
    table = [job for job in grid.jobs(records) if job.role == "table"]
    assert [(job.setting, job.arm, job.seed) for job in table] == [
        (setting, arm, seed) for setting in ("one", "two") for arm in ("a", "b") for seed in (0, 1)
    ]
    assert {job.cell.config.optimizer.lr for job in table} == {0.2}


def test_an_arm_goes_on_as_soon_as_its_own_search_is_over():
    grid = grid_of()
    mine = [job for job in grid.jobs({}) if (job.setting, job.arm) == ("one", "b")]
    table = [job for job in grid.jobs(records_of(mine, lambda _: 0.5)) if job.role == "table"]
    assert {(job.setting, job.arm) for job in table} == {("one", "b")}


def test_the_first_of_equals_is_taken_and_a_choice_that_failed_is_not():
    grid = grid_of(tuning_seeds=(100,))
    failing = {0.1: None, 0.2: 0.5, 0.3: 0.5}
    searches = grid.searches(records_of(grid.jobs({}), lambda job: failing[job.choice["lr"]]))
    assert [search.chosen for search in searches] == [{"lr": 0.2}] * 4
    assert [accuracy for _, accuracy in searches[0].accuracies] == [None, 0.5, 0.5]


def test_where_all_choices_failed_the_table_has_no_runs():
    grid = grid_of()
    records = records_of(grid.jobs({}), lambda _: None)
    assert {job.role for job in grid.jobs(records)} == {"tuning"}
    assert {search.chosen is None for search in grid.searches(records)} == {True}


def test_settings_may_share_a_search():
    grid = grid_of(tune_in=lambda _: Setting("one"))
    tuning = grid.jobs({})
    assert {job.setting for job in tuning} == {"one"}
    assert len(tuning) == 2 * 3 * 2
    records = records_of(tuning, lambda job: job.choice["lr"])
    table = [job for job in grid.jobs(records) if job.role == "table"]
    assert {(job.setting, job.cell.config.optimizer.lr) for job in table} == {
        ("one", 0.3),
        ("two", 0.3),
    }


def test_without_a_choice_there_is_no_search():
    one = {"a": RATES[:1], "b": RATES[:1]}
    grid = grid_of(choices=one, tuning_seeds=())
    assert {job.role for job in grid.jobs({})} == {"table"}
    assert [search.chosen for search in grid.searches({})] == [RATES[0]] * 4


def test_an_arm_may_be_absent_from_a_setting():
    def cell(setting, arm, choice, seed):
        return None if (setting.name, arm) == ("two", "b") else config(setting, arm, choice, seed)

    jobs = grid_of(cell=cell).planned()
    assert {(job.setting, job.arm) for job in jobs} == {("one", "a"), ("one", "b"), ("two", "a")}


def test_a_config_that_ignores_the_seed_is_one_line(one_line):
    def cell(setting, arm, choice, seed):
        return config(setting, arm, choice, 7)

    one = {"a": RATES[:1], "b": RATES[:1]}
    with one_line("a in one", "seeds 0 and 1"):
        grid_of(cell=cell, choices=one, tuning_seeds=()).jobs({})
