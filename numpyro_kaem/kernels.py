"""Markov kernels for the samplers `Langevin`, `ParallelTempering` and `TemperedSMC`, and for objectives with chains.

Two of them, `HMC` and `NUTS`, have the names of NumPyro's own kernels for `numpyro.infer.MCMC`: written as
`kernels.NUTS()` they are told apart. `from numpyro_kaem import *` gives `kernels`, and leaves NumPyro's names as they
are.

Example:
    ```python
    from numpyro_kaem import Langevin, TemperedSMC, kernels

    sampler = TemperedSMC(kernel=kernels.MALA())
    chains = Langevin(kernels.NUTS(max_num_doublings=6), num_steps=100)
    ```
"""

from numpyro_kaem.posterior.hamiltonian_kernels import HMC, NUTS
from numpyro_kaem.posterior.langevin_kernels import MALA, ULA, Barker
from numpyro_kaem.posterior.whitened_kernels import PCNL, EllipticalSlice, LatentGaussian

__all__ = ["HMC", "MALA", "NUTS", "PCNL", "ULA", "Barker", "EllipticalSlice", "LatentGaussian"]
