"""Options with which XLA compiles the programs of samplers."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax

# On CPUs, XLA's newer way to write code for fused operations takes twice as long, and the code is no faster.
_ALWAYS = {"xla_cpu_use_fusion_emitters": False}
# Of a program that runs once, optimised code would take longer to compile than it saves.
RUN_ONCE = {"xla_backend_optimization_level": 0, **_ALWAYS}
# LLVM's highest level would only take longer to compile.
LOOP = {"xla_backend_optimization_level": 2, **_ALWAYS}


def known_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Those of the options that the installed XLA has: they come and go with its versions."""
    return {option: value for option, value in (options or {}).items() if _is_known(option, value)}


@cache
def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
