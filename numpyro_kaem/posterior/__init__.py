"""Posterior samplers: one protocol, `sampler.run(key, model, params, *data) -> Posterior`."""

from numpyro_kaem.posterior.importance import ImportanceSampling
from numpyro_kaem.posterior.result import Posterior

__all__ = ["ImportanceSampling", "Posterior"]
