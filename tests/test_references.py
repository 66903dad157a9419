"""What the documentation says of NumPyro's distributions as references is so."""

import importlib.util
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from prior_cases import quick_jit
from speed import slow_unless

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "choosing-a-basis.md").read_text()
spec = importlib.util.spec_from_file_location("references", ROOT / "benchmarks" / "references.py")
references = importlib.util.module_from_spec(spec)
spec.loader.exec_module(references)

STATED = dict(re.findall(r"^\| `(\w+)` \| (closed form|bisection|no) \|", PAGE, re.MULTILINE))
SAME_VERSION = f"NumPyro {numpyro.__version__}" in PAGE
# Shared by the distributions of one reference: only their numbers differ.
there_and_back = quick_jit(references.there_and_back)
SOME_PROBABILITIES = references.PROBABILITIES[4::20]
# They take long to compile, and others are made of the same functions; `test_reference_tails.py` has their tails.
LONG = {
    *("LeftTruncatedGamma", "RightTruncatedGamma", "TwoSidedTruncatedGamma", "InverseGamma", "Chi2"),
    *("BetaProportion", "LeftTruncatedDistribution", "RightTruncatedDistribution"),
}


def test_the_table_has_every_distribution_that_numpyro_has():
    assert set(STATED) == set(references.REFERENCES)
    classes = {name for name, item in vars(dist).items() if inspect.isclass(item)}
    assert set(STATED) <= classes
    univariate = set()
    for name in classes:
        item = getattr(dist, name)
        if not issubclass(item, dist.Distribution):
            continue
        try:
            continuous = not item.support.is_discrete and item.support.event_dim == 0
        except (AttributeError, NotImplementedError):  # it depends on the parameters
            continuous = True
        if continuous:
            univariate.add(name)
    if SAME_VERSION:
        assert univariate == set(STATED) | references.NOT_REFERENCES


@pytest.mark.skipif(not SAME_VERSION, reason="the page is about another NumPyro")
@pytest.mark.parametrize("name", STATED)
def test_tails_are_inverted_as_the_page_says(name):
    has_tfp = importlib.util.find_spec("tensorflow_probability") is not None
    if STATED[name] == "bisection" and has_tfp:
        pytest.skip("with tensorflow_probability more of them have an icdf")
    assert references.how(name) == STATED[name]


@pytest.mark.parametrize(
    "name",
    slow_unless(["Normal", "Weibull"], [name for name, tails in STATED.items() if tails != "no" and name not in LONG]),
)
def test_a_tilted_reference_inverts_its_cdf_and_its_energy_zero_is_the_reference(name):
    prior = references.make_prior(name)
    assert references.round_trip(prior, there_and_back, SOME_PROBABILITIES) < 3e-6
    reference = references.REFERENCES[name][0]()
    zero = type(prior)(prior.energy.init(jax.random.key(0), basis=prior.energy.basis, scale=0.0), reference)
    z, _ = there_and_back(zero, SOME_PROBABILITIES)  # has been compiled for the tilted one
    np.testing.assert_allclose(quick_jit(reference.cdf)(z), SOME_PROBABILITIES, atol=5e-6)
