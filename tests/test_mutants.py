"""The faults of mutants.py can still be made, and the tests that are to notice them are still there and run."""

import ast
from pathlib import Path

import pytest
from mutants import MUTANTS, mutated

TESTS = Path(__file__).parent


def runs_by_default(test):
    """Whether a node id is that of a test function without the mark of slow ones."""
    file, _, rest = test.partition("::")
    name = rest.partition("[")[0]
    functions = [node for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    marks = [ast.unparse(mark) for function in functions if function.name == name for mark in function.decorator_list]
    return name in {function.name for function in functions} and "pytest.mark.slow" not in marks


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_a_fault_can_be_made_and_has_its_test(mutant):
    assert mutated(mutant).count(mutant.new) >= 1
    assert runs_by_default(mutant.test), mutant.test


def test_every_fault_has_a_case_that_runs_by_default(request):
    """Parameters included, which only a collection of the whole default suite knows."""
    collected = {item.nodeid.removeprefix("tests/") for item in request.session.items}
    files = {mutant.test.partition("::")[0] for mutant in MUTANTS}
    if request.config.option.keyword or not files <= {node.partition("::")[0] for node in collected}:
        pytest.skip("not the whole default suite")
    by_function = {mutant.test for mutant in MUTANTS if "[" not in mutant.test}
    names = collected | {node.partition("[")[0] for node in collected}
    assert {mutant.test for mutant in MUTANTS} - by_function <= collected
    assert by_function <= names


def test_faults_differ():
    assert len({(mutant.path, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS)


def test_a_fault_that_cannot_be_made_is_named():
    gone = MUTANTS[0]._replace(fault="a fault", old="text that is not there")
    with pytest.raises(ValueError, match="the fault 'a fault' must change a text that occurs once"):
        mutated(gone)
