"""Training objectives: losses for `numpyro.infer.SVI`."""

from numpyro_kaem.objectives.importance import ImportanceMLE

__all__ = ["ImportanceMLE"]
