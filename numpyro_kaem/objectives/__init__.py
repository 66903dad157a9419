"""Training objectives: losses for `numpyro.infer.SVI` and `numpyro_kaem.fit`."""

from numpyro_kaem.objectives.importance import ImportanceMLE
from numpyro_kaem.objectives.langevin import LangevinMLE
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.objectives.schedules import cyclic_schedule
from numpyro_kaem.objectives.thermodynamic import ThermodynamicMLE

__all__ = ["ImportanceMLE", "LangevinMLE", "Objective", "ThermodynamicMLE", "cyclic_schedule"]
