"""The benchmark of the paper's claims: its closed form against quadrature."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.claims.importance import ENOUGH, exact_end, exact_share  # noqa: E402

sys.path.remove(str(ROOT))


@pytest.mark.parametrize("ratio", [4.0, 100.0])
@pytest.mark.parametrize("latents", [1, 3])
def test_the_exact_effective_sample_size_is_that_of_the_median_datum_by_quadrature(latents, ratio):
    # The datum at the median of the chi-squared, its distance from zero shared by the latents.
    m = np.sqrt((1 + 1 / ratio) * chi2.median(latents) / latents)
    z = np.linspace(-12.0, 12.0, 240_001)
    prior = np.exp(-(z**2) / 2)
    prior /= prior.sum()
    weights = np.exp(-ratio * (z - m) ** 2 / 2)
    share = ((prior * weights).sum() ** 2 / (prior * weights**2).sum()) ** latents
    assert exact_share(latents, ratio) == pytest.approx(share, rel=1e-8)


@pytest.mark.parametrize("ratio", [4.0, 100.0])
def test_at_the_end_of_importance_sampling_the_effective_sample_size_is_what_is_enough(ratio):
    assert 1_000 * exact_share(exact_end(1_000, ratio), ratio) == pytest.approx(ENOUGH)
