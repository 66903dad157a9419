"""Programs that run without this package: StableHLO by `jax.export`, and the learned inverse CDFs as integers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from numpyro_kaem.checks import check_count
from numpyro_kaem.kaem.model import Parts, draw
from numpyro_kaem.kaem.priors import from_uniforms, num_uniforms

SAMPLE, TRANSFORM, ABOUT = "sample.stablehlo", "from_uniforms.stablehlo", "about.json"


def export(parts: Parts, path: str | os.PathLike, num_samples: int, platforms: Sequence[str]) -> None:
    """Write both programs, and what they take and give, to a folder."""
    check_count("num_samples", num_samples, 1)
    try:
        import flatbuffers  # noqa: F401  # which jax.export needs, and JAX does not install
    except ImportError as error:
        raise ImportError("KAEM.export needs flatbuffers: pip install 'numpyro_kaem[export]'") from error

    def sample(seed):
        return draw.function(parts, jax.random.key(seed), num_samples, False)

    def transform(u):
        drawn = parts.drawn
        z = from_uniforms(drawn.prior, u)
        return jax.vmap(lambda z: drawn.mean(z[None]))(z)

    u = jax.ShapeDtypeStruct((num_samples, num_uniforms(parts.prior_distribution)), jnp.result_type(float))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"platforms": list(platforms), "jax": jax.__version__}
    for name, function, argument in ((SAMPLE, sample, seed), (TRANSFORM, transform, u)):
        exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(argument)
        (folder / name).write_bytes(exported.serialize())
        about[name] = {
            "takes": [[str(aval.dtype), list(aval.shape)] for aval in exported.in_avals],
            "gives": [[str(aval.dtype), list(aval.shape)] for aval in exported.out_avals],
        }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
