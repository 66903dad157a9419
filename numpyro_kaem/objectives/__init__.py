"""Training objectives: losses for `numpyro.infer.SVI` and `numpyro_kaem.fit`.

Each file imports from those above it and from earlier rooms only.

objective: What the training objectives of this package share: NumPyro losses that may keep a state of their own
importance: Maximum likelihood by importance sampling from the prior
population: Chains at every rung of a ladder, and particles of tempered SMC, of every datum of a batch
langevin: Maximum likelihood by Markov chains on the posterior of every datum
thermodynamic: Maximum likelihood over a ladder of temperatures, and schedules of its exponent
"""

from numpyro_kaem.objectives.importance import ImportanceMLE
from numpyro_kaem.objectives.langevin import LangevinMLE
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.objectives.thermodynamic import ThermodynamicMLE, cyclic_schedule

__all__ = ["ImportanceMLE", "LangevinMLE", "Objective", "ThermodynamicMLE", "cyclic_schedule"]
