"""Posterior samplers: one protocol, `sampler.run(key, model, params, *data) -> Posterior`."""

from numpyro_kaem.posterior.evidence import Evidence, compare_evidence
from numpyro_kaem.posterior.hamiltonian_kernels import HMC, NUTS
from numpyro_kaem.posterior.importance import ImportanceSampling
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder
from numpyro_kaem.posterior.langevin_kernels import MALA, ULA, Barker
from numpyro_kaem.posterior.result import Posterior, Rungs
from numpyro_kaem.posterior.smc import TemperedSMC
from numpyro_kaem.posterior.tempering import Langevin, ParallelTempering
from numpyro_kaem.posterior.whitened_kernels import PCNL, EllipticalSlice, LatentGaussian

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "PCNL",
    "ULA",
    "Barker",
    "EllipticalSlice",
    "Evidence",
    "ImportanceSampling",
    "Kernel",
    "Ladder",
    "Langevin",
    "LatentGaussian",
    "ParallelTempering",
    "Posterior",
    "Rungs",
    "TemperedSMC",
    "compare_evidence",
]
