"""Posterior samplers: one protocol, `sampler.run(key, model, params, *data) -> Posterior`.

Each file imports from those above it and from earlier rooms only.

target: What posterior chains move on: the parts of a model's log-density, in flat coordinates without bounds
kernel: Markov kernels on points whose log-prior, log-likelihood and gradients are kept apart
langevin_kernels: Kernels that make one step along the gradient: unadjusted and Metropolis-adjusted Langevin, Barker
whitened_kernels: Kernels for a standard normal prior, in the coordinates eps with z = F^-1(Phi(eps))
hamiltonian_kernels: Kernels that follow Hamiltonian dynamics, by BlackJAX
convergence: Whether chains or runs agree with one another: rank-normalised R-hat, and lumps in a series
reading: Reading a model at a sampler's call: data as arguments of programs or, where it cannot be traced, as they are
proposal: An encoder as the proposal: a NumPyro guide, read as `LatentModel` reads a model
diagnostics: What samplers do about data whose likelihood is broken or zero
predictive: What the model says of a posterior: draws from the prior, replicated data, log-likelihoods by observation
weights: Importance weights of draws from the prior or a guide: what `ImportanceSampling` and `ImportanceMLE` share
labels: Names for the axes of a posterior's arrays: xarray datasets with the dimensions of the model's plates
evidence: Estimates of the evidence log p(x) from a population of chains over a temperature ladder
pareto: Pareto smoothing: the largest importance weights of each datum, and the generalised Pareto law of their tail
result: What a posterior sampler returns
comparison: Models of the same data, compared by their evidence
ladder: Temperature ladders between the prior (t = 0) and the posterior (t = 1)
run_checkpoints: Checkpoints of a sampler's run, with which the same call goes on after Ctrl-C or the end of its process
moves: One step of a datum's chains at all rungs: what samplers and training objectives share
swaps: Swaps between the rungs of a ladder: what samplers and training objectives share
chains: The population of chains behind `Langevin` and `ParallelTempering`, as compiled functions of arrays
particles: The particles behind `TemperedSMC`, as compiled functions of arrays
sampler: What posterior samplers share: how they are called, and how a run takes its data in chunks and survives Ctrl-C
importance: Importance sampling, with the prior or a guide as proposal
tempering: Markov chains at one temperature and over a ladder of them
smc_evidence: What the rungs of tempered SMC tell: estimates of the evidence, their standard errors, and statistics
smc: Tempered sequential Monte Carlo for any NumPyro model
arviz: Conversion to ArviZ, for both of its lines: InferenceData (0.x) and xarray's DataTree (1.x)
"""

from numpyro_kaem.posterior.arviz import to_arviz
from numpyro_kaem.posterior.comparison import compare_evidence
from numpyro_kaem.posterior.evidence import Evidence
from numpyro_kaem.posterior.hamiltonian_kernels import HMC, NUTS
from numpyro_kaem.posterior.importance import ImportanceSampling
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder
from numpyro_kaem.posterior.langevin_kernels import MALA, ULA, Barker
from numpyro_kaem.posterior.result import Posterior, Rungs
from numpyro_kaem.posterior.sampler import Sampler
from numpyro_kaem.posterior.smc import TemperedSMC
from numpyro_kaem.posterior.tempering import Langevin, ParallelTempering
from numpyro_kaem.posterior.whitened_kernels import PCNL, EllipticalSlice, LatentGaussian

Posterior.to_arviz = to_arviz

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
    "Sampler",
    "TemperedSMC",
    "compare_evidence",
]
