"""Training objectives: losses for `numpyro.infer.SVI` and `numpyro_kaem.fit`.

Each file imports from those above it and from earlier rooms only.

objective: What the training objectives of this package share: NumPyro losses that may keep a state of their own
schedules: Schedules of a ladder's exponent over training
importance: Maximum likelihood by importance sampling from the prior
population: Chains of every datum of a batch at every rung of a ladder, as a step of training runs them
tempered_particles: Tempered SMC on the posterior of every datum of a batch, as a step of training runs it
langevin: Maximum likelihood by Markov chains on the posterior of every datum
thermodynamic: Maximum likelihood over a ladder of temperatures
"""

from numpyro_kaem.objectives.importance import ImportanceMLE
from numpyro_kaem.objectives.langevin import LangevinMLE
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.objectives.schedules import cyclic_schedule
from numpyro_kaem.objectives.thermodynamic import ThermodynamicMLE

__all__ = ["ImportanceMLE", "LangevinMLE", "Objective", "ThermodynamicMLE", "cyclic_schedule"]
