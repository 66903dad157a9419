"""Which cases of a test run by default."""

import pytest


def slow_unless(quick, cases):
    """All cases, those that are not among the quick ones marked as slow."""
    quick, cases = list(quick), list(cases)
    unknown = [case for case in quick if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
