"""The KAEM object: a prior, a generator and a likelihood, from `fit` to a file."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer import RenyiELBO

import numpyro_kaem
from numpyro_kaem.checks import check_count
from numpyro_kaem.energies import Basis
from numpyro_kaem.generators import MLP
from numpyro_kaem.kaem import archive, codec, shipping
from numpyro_kaem.kaem.choice import choose_sampler, importance_sampling, tempered_smc
from numpyro_kaem.kaem.evaluation import Evaluation, evaluate, mean_of_means
from numpyro_kaem.kaem.likelihoods import Likelihood, OwnLikelihood, check_data, likelihood_by_name
from numpyro_kaem.kaem.model import Guide, Model, Parts, as_equinox, draw
from numpyro_kaem.kaem.priors import DEFAULT_BASIS, ClusterPrior, generator_input, make_prior
from numpyro_kaem.objectives import ImportanceMLE, LangevinMLE
from numpyro_kaem.posterior import Posterior
from numpyro_kaem.posterior.sampler import Sampler
from numpyro_kaem.training import HeldOut, fit
from numpyro_kaem.training.result import epoch_table

if TYPE_CHECKING:
    import pandas as pd

_logger = logging.getLogger("numpyro_kaem")
# Latents up to which prior draws that all data of a batch share are enough to train by.
_FEW_LATENTS = 16


class KAEM(eqx.Module):
    """A latent-variable model, trained and used through one object."""

    parts: Parts
    shape: tuple[int, ...] = eqx.field(static=True)
    history: dict[str, np.ndarray] | None
    guide_params: dict[str, Any] | None

    def __init__(
        self,
        prior: dist.Distribution | eqx.Module | Callable,
        generator: Any,
        likelihood: str | Callable,
        *,
        shape: tuple[int, ...] | None = None,
        encoder: Any = None,
        noise: float | None = None,
        num_categories: int | None = None,
    ):
        generator = as_equinox(generator)
        bare = Parts(prior, generator, lambda output: output, as_equinox(encoder))
        given = bare.prior_distribution
        z = jax.eval_shape(lambda key: generator_input(given, given.sample(key, (2,))), jax.random.key(0))
        try:
            output = jax.eval_shape(lambda z: bare.drawn.generator(z), z)
        except Exception as error:
            raise ValueError(
                f"prior gives the generator latents of shape {z.shape[1:]}, which generator "
                f"{type(generator).__name__} does not take: {error}"
            ) from error
        if isinstance(likelihood, str):
            size = math.prod(output.shape[1:])
            if shape is None:
                shape = output.shape[1:-1] if likelihood == "categorical" else output.shape[1:]
            likelihood = likelihood_by_name(likelihood, tuple(shape), noise, num_categories)
            if size != likelihood.output_size:
                raise ValueError(
                    f"generator gives {output.shape[1:]} for latents of shape {z.shape[1:]}, but the likelihood of data "
                    f"of shape {tuple(shape)} takes {likelihood.output_shape}"
                )
        elif not isinstance(likelihood, Likelihood):
            likelihood = OwnLikelihood(likelihood)
        self.parts = Parts(prior, generator, likelihood, as_equinox(encoder))
        self.shape = jax.eval_shape(lambda z: likelihood(self.parts.drawn.generator(z)).sample(jax.random.key(0)), z).shape[1:]
        self.history, self.guide_params = None, None

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        shape: Sequence[int],
        *,
        latent_size: int,
        likelihood: str,
        prior: str | dist.Distribution | eqx.Module | Callable = "independent",
        generator: str | Any = "auto",
        encoder: bool | Any = False,
        hidden_sizes: Sequence[int] = (400, 400, 400),
        num_components: int | None = None,
        basis: Basis = DEFAULT_BASIS,
        noise: float | None = None,
        num_categories: int | None = None,
    ) -> KAEM:
        """A model for data of a shape."""
        shape = tuple(check_count("shape", size, 1) for size in shape)
        prior_key, generator_key, encoder_key = jax.random.split(key, 3)
        if isinstance(prior, str):
            prior = make_prior(prior_key, prior, latent_size, num_components, basis)
        likelihood_module = likelihood_by_name(likelihood, shape, noise, num_categories)
        joint = Parts(prior, None, None).prior_distribution
        width = math.prod(joint.event_shape[:1])
        if generator == "auto":
            generator = MLP(generator_key, width, likelihood_module.output_size, hidden_sizes)
        if encoder is True:
            size = likelihood_module.output_size
            encoder = Flat(MLP(encoder_key, size, 2 * math.prod(joint.event_shape), hidden_sizes[::-1]), len(shape))
        options = {"noise": noise, "num_categories": num_categories, "shape": shape}
        return cls(prior, generator, likelihood, encoder=encoder or None, **options)

    @property
    def model(self) -> Model:
        return Model(self.parts)

    @property
    def guide(self) -> Guide | None:
        return None if self.parts.encoder is None else Guide(self.parts)

    @property
    def params(self) -> dict[str, Any]:
        return self.parts.params

    def fit(self, key: PRNGKeyArray, x: Any, **options: Any) -> KAEM:
        """Train, from where the model is."""
        x = check_data(self.parts.likelihood, x)
        ...
        batch_size = options.pop("batch_size", min(200, len(x)))
        steps = len(x) // batch_size
        num_epochs = options.pop("num_epochs", max(5, min(300, math.ceil(3000 / steps))))
        objective = options.pop("objective", self._default_objective())
        if "optimizer" not in options:
            options |= _default_optimizer(num_epochs * steps)
        parts = self.parts
        if options.get("grid_adaptation") is not None:
            parts = replace(parts, adapts=True)
        result = fit(
            key,
            Model(parts),
            x,
            objective=objective,
            guide=None if parts.encoder is None else Guide(parts),
            num_epochs=num_epochs,
            batch_size=batch_size,
            **options,
        )
        held_out = options.get("held_out")
        best = isinstance(held_out, HeldOut) and held_out.patience is not None
        params = result.averaged_params or (result.best_params if best else result.params)
        trained = eqx.tree_at(lambda kaem: kaem.parts, self, parts.at(params | result.guide_params))
        return eqx.tree_at(lambda kaem: kaem.history, trained, result.history, is_leaf=lambda leaf: leaf is None)

    def _default_objective(self) -> Any:
        if self.parts.encoder is not None:
            return RenyiELBO(num_particles=5)
        size = math.prod(self.parts.prior_distribution.event_shape)
        return ImportanceMLE(1_000) if size <= _FEW_LATENTS else LangevinMLE(num_steps=10)

    def posterior(self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None) -> Posterior:
        """The posterior of every datum, by a sampler that suits, or the one given."""
        x = check_data(self.parts.likelihood, x)
        choice_key, key = jax.random.split(key)
        params = self.params
        if sampler is None:
            sampler, reason = choose_sampler(choice_key, self.parts, params, self.guide_params, x)
            _logger.warning("posterior by %s", reason)
        return sampler.run(key, self.model, params, x)

    def log_likelihood(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None
    ) -> Float[np.ndarray, " num_data"]:
        """log p(x) of every datum, by tempered SMC, or by a sampler that has an evidence."""
        posterior = self.posterior(key, x, tempered_smc() if sampler is None else sampler)
        if posterior.log_evidence is None:
            raise ValueError(f"sampler must have an evidence, such as TemperedSMC(...), got {sampler!r}")
        return posterior.log_evidence

    def reconstruct(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None, *, num_draws: int = 32
    ) -> Float[np.ndarray, "num_data ..."]:
        """Means of the likelihood, averaged over posterior draws."""
        sample_key, draw_key = jax.random.split(key)
        draws = self.posterior(sample_key, x, sampler).resample(draw_key, num_draws).latents["z"]
        return mean_of_means(self.parts, draws)

    def evaluate(
        self,
        key: PRNGKeyArray,
        x: Any,
        sampler: Sampler | None = None,
        *,
        num_scored: int = 200,
        features: Callable | None = None,
    ) -> Evaluation:
        """Scores of held-out data, by tempered SMC, and of draws beside them."""
        x = np.asarray(check_data(self.parts.likelihood, x))
        sampler = tempered_smc() if sampler is None else sampler
        return evaluate(self.parts, self.guide_params, key, x, sampler, num_scored=num_scored, features=features)

    def sample(self, key: PRNGKeyArray, num_samples: int, *, mean: bool = False) -> Array:
        """Data drawn from the model: exact draws from the prior, decoded."""
        return draw(self.parts, key, check_count("num_samples", num_samples, 1), mean)

    def cluster_probabilities(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None
    ) -> Float[np.ndarray, "num_data num_clusters"]:
        """p(k | x) of every cluster of a mixture of whole latent vectors, the mean of p(k | z) over the posterior."""
        prior = self.parts.prior
        if not isinstance(prior, ClusterPrior):
            raise ValueError(f"prior must be a ClusterPrior, got {type(prior).__name__}: KAEM.create(prior='cluster')")
        return self.posterior(key, x, sampler).expectation(lambda latents: prior.probabilities(latents["z"]))

    def summary(self) -> str:
        """A table of sites, shapes and numbers of parameters."""
        rows = [("site", "shape", "parameters")]
        for site, value in self.params.items():
            leaves = [leaf for leaf in jax.tree.leaves(value) if eqx.is_inexact_array(leaf)]
            rows.append((site, ", ".join(str(leaf.shape) for leaf in leaves), f"{sum(leaf.size for leaf in leaves):,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)

    def save(self, path: str | os.PathLike, *, history: bool = True) -> None:
        """Write one file that `KAEM.load` reads."""
        arrays: dict[str, np.ndarray] = {}
        parts = {name: _described(getattr(self.parts, name), arrays, name) for name in _PARTS}
        values = codec.describe(self.parts.values, arrays, "values")
        kept = codec.describe(self.history if history else None, arrays, "history")
        manifest = {
            "written_by": f"numpyro_kaem {numpyro_kaem.__version__}",
            "shape": list(self.shape),
            "parts": parts,
            "values": values,
            "history": kept,
        }
        archive.write(path, manifest, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike, **own: Any) -> KAEM:
        """Read what `save` has written; parts that are not of this package are given again, with any parameters."""
        manifest, arrays = archive.read(path)
        parts = {}
        for name in _PARTS:
            parts[name] = _rebuilt(name, manifest["parts"][name], arrays, own.pop(name, None))
        if own:
            raise TypeError(f"load() got an unexpected keyword argument {next(iter(own))!r}")
        values = codec.build(manifest["values"], arrays)
        kaem = object.__new__(cls)
        for name, value in {
            "parts": Parts(**parts, values=values),
            "shape": tuple(manifest["shape"]),
            "history": codec.build(manifest["history"], arrays),
            "guide_params": None,
        }.items():
            object.__setattr__(kaem, name, value)
        return kaem

    def export(
        self, path: str | os.PathLike, *, num_samples: int, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
    ) -> None:
        """Write programs that draw without this package."""
        shipping.export(self.parts, path, num_samples, platforms)

    def __repr__(self) -> str:
        parts = self.parts
        names = [type(part).__name__ for part in (parts.prior, parts.generator, parts.likelihood)]
        return f"KAEM({', '.join(names)}, shape={self.shape}, {'trained' if self.history else 'not trained'})"


_PARTS = ("prior", "generator", "likelihood", "encoder")


def _described(part: Any, arrays: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """A part as the manifest has it: whole, or by the arrays of a module or function of the user's own."""
    found: dict[str, np.ndarray] = {}
    try:
        described = codec.describe(part, found, name)
    except codec.NotDescribed:
        leaves = {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(part)}
        found = {path: np.asarray(leaf) for path, leaf in leaves.items() if eqx.is_array(leaf)}
        described = {"own": getattr(part, "__qualname__", type(part).__qualname__), "arrays": list(found)}
    arrays.update(found)
    return described


def _rebuilt(name: str, described: Any, arrays: dict[str, np.ndarray], own: Any) -> Any:
    if not (isinstance(described, dict) and "own" in described):
        if own is not None:
            raise ValueError(f"{name} is in the file, and need not be given")
        return codec.build(described, arrays)
    if own is None:
        raise ValueError(f"{name} of this file is {described['own']!r}, not of this package: give one as {name}=")
    paths = {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(as_equinox(own))}
    expected = {path: leaf.shape for path, leaf in paths.items() if eqx.is_array(leaf)}
    saved = {path: arrays[path].shape for path in described["arrays"]}
    if expected != saved:
        different = sorted(path for path in expected.keys() | saved.keys() if expected.get(path) != saved.get(path))
        raise ValueError(f"{name} is not the module that was saved: its arrays differ at {different}")
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(arrays[f"{name}{jax.tree_util.keystr(path)}"]) if eqx.is_array(leaf) else leaf,
        as_equinox(own),
    )


class Flat(eqx.Module):
    """A module of vectors, given data of more axes."""

    module: eqx.Module
    num_axes: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... size"]:
        """The module's output for data whose last axes are put in one."""
        return self.module(x.reshape(*x.shape[: x.ndim - self.num_axes], -1))


def _default_optimizer(num_steps: int) -> dict[str, Any]:
    """Adam; the density of a coordinate is to change more slowly than the network that reads it."""
    rates = {"prior": 3e-4, "rest": 1.5e-3}
    return {
        "optimizer": {name: optax.adam(optax.cosine_decay_schedule(r, num_steps, alpha=0.05)) for name, r in rates.items()},
        "labels": lambda site: "prior" if site.startswith("prior") else "rest",
    }
