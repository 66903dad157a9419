"""Which posterior sampler suits a trained model: a short trial decides, and says so."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_kaem.kaem.model import Guide, Model, Parts
from numpyro_kaem.posterior import ImportanceSampling, TemperedSMC
from numpyro_kaem.posterior.sampler import Sampler

# Of the trial, and what it must give: with fewer effective draws scores are off by tenths of a nat and more.
NUM_TRIED, NUM_DRAWS, MIN_ESS = 32, 2_000, 100


class Choice(NamedTuple):
    """A sampler, and in words why it."""

    sampler: Sampler
    reason: str


def importance_sampling(parts: Parts, num_samples: int = NUM_DRAWS) -> ImportanceSampling:
    """Importance sampling from the encoder, or from the prior where there is none."""
    if parts.encoder is None:
        return ImportanceSampling(num_samples, progress=False)
    return ImportanceSampling(num_samples, guide=Guide(parts), guide_params=parts.encoder_params, progress=False)


def tempered_smc() -> TemperedSMC:
    """What posteriors and scores are taken from where importance sampling cannot be trusted."""
    return TemperedSMC(num_particles=100, num_mcmc_steps=10, num_runs=2, chunk_size=20_000, progress=False)


def with_guide(sampler: Any, guide: Guide | None, guide_params: dict[str, Any] | None = None) -> Any:
    """A sampler that takes a guide and has none, or an encoder's without parameters, with this one."""
    if guide is None or not hasattr(sampler, "guide"):
        return sampler
    is_free = sampler.guide is None or (isinstance(sampler.guide, Guide) and sampler.guide_params is None)
    return sampler.having(guide=guide, guide_params=guide_params) if is_free else sampler


def scoring_sampler(sampler: Sampler | None) -> Sampler:
    """The sampler of scores; a ValueError for one that has no evidence."""
    if sampler is None:
        return tempered_smc()
    if not sampler.has_evidence:
        raise ValueError(
            f"sampler must have an evidence, as TemperedSMC(...) or a ladder that begins at t = 0, got {sampler!r}"
        )
    return sampler


def choose_sampler(key: PRNGKeyArray, parts: Parts, x: Any) -> Choice:
    """Importance sampling where nine in ten of some data have 100 effective draws, else tempered SMC."""
    sampler = importance_sampling(parts)
    tried = x[:NUM_TRIED]
    ess = float(np.quantile(sampler.run(key, Model(parts), parts.params, tried).ess, 0.1))
    what = f"of {NUM_DRAWS:,} draws from the {'prior' if parts.encoder is None else 'encoder'}"
    found = f"the effective sample size {what} is {ess:.1f} or more for nine in ten of {len(tried)} data"
    if ess >= MIN_ESS:
        return Choice(sampler, f"importance sampling: {found}")
    return Choice(tempered_smc(), f"tempered SMC: {found}, and importance sampling needs {MIN_ESS}")
