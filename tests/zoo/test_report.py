from jxfer.zoo.report import Report, raise_problems


def test_report_counts():
    report = Report(loaded=("a", "b"), reinitialised=("c",), dropped=())
    assert str(report) == "loaded 2, re-initialised 1, dropped 0"


def test_no_problems_no_error():
    raise_problems("x", [])


def test_all_problems_in_one_line(one_line):
    with one_line("x: 2 problems: a; b"):
        raise_problems("x", ["a", "b"])
    with one_line("x: 1 problem: a"):
        raise_problems("x", ["a"])


def test_cut_after_five(one_line):
    with one_line("x: 7 problems: 0; 1; 2; 3; 4; and 2 more"):
        raise_problems("x", list("0123456"))
