"""What a checkpoint says of the run that has written it, besides the shapes of its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpyro.distributions import Distribution

from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder


def describe_distributions(trace: dict[str, dict]) -> dict[str, str]:
    """The families of the sample sites of a model, by name.

    Their parameters are not told apart: most of them are functions of what is learned.
    """
    return {name: _family(site["fn"]) for name, site in trace.items() if site["type"] == "sample"}


def describe_settings(thing: Any) -> dict[str, Any]:
    """What an objective or a sampler is set to, as far as JSON can say it: functions, as schedules, are left out."""
    settings = {}
    for name in dict.fromkeys(("num_particles", "vectorize_particles", *vars(thing))):
        value = getattr(thing, name, None)
        if isinstance(value, Ladder):
            settings[name] = np.asarray(value.temperatures).tolist()
        elif isinstance(value, Kernel):
            settings[name] = repr(value)
        elif value is None or isinstance(value, bool | int | float | str):
            settings[name] = value
    return settings


def _family(distribution: Distribution) -> str:
    name, base = type(distribution).__name__, getattr(distribution, "base_dist", None)
    return name if base is None else f"{name}({_family(base)})"
