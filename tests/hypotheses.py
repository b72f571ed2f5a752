"""How Hypothesis draws in these tests: the same examples in every run, in any time."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """A decorator: so many examples."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
