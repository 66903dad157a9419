"""The KAEM object: a prior, a generator and a likelihood, from `fit` to a file."""

from __future__ import annotations

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from numpyro_kaem.checks import check_count
from numpyro_kaem.energies import Basis
from numpyro_kaem.generators import SequenceDecoder
from numpyro_kaem.kaem import files, shipping
from numpyro_kaem.kaem.choice import Choice, choose_sampler, scoring_sampler, with_guide
from numpyro_kaem.kaem.composition import compose
from numpyro_kaem.kaem.data import CheckedBatches, check_data
from numpyro_kaem.kaem.defaults import default_held_out, training_options
from numpyro_kaem.kaem.evaluation import Evaluation, evaluate, mean_of_draws
from numpyro_kaem.kaem.likelihoods import likelihood_by_name
from numpyro_kaem.kaem.model import Guide, Model, Parts, decode, draw
from numpyro_kaem.kaem.networks import default_encoder, default_generator
from numpyro_kaem.kaem.priors import DEFAULT_BASIS, ClusterPrior, make_prior
from numpyro_kaem.kaem.summary import summary
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.posterior import Posterior
from numpyro_kaem.posterior.sampler import Sampler
from numpyro_kaem.reading.methods import Readable
from numpyro_kaem.training import HeldOut, fit
from numpyro_kaem.training.data import is_stream
from numpyro_kaem.training.result import epoch_table

if TYPE_CHECKING:
    import pandas as pd

_logger = logging.getLogger("numpyro_kaem")


class KAEM(Readable, eqx.Module):
    r"""A latent-variable model in one object: from data to a trained model, its scores, a file and a program.

    $$z \sim p(z), \qquad x \mid z \sim \text{likelihood}(\text{generator}(z)),$$

    with a prior of learned one-dimensional densities, such as a `KAPrior`. It is immutable: `fit` returns a trained
    copy. All it does is done by other parts of this package with `kaem.model`, an ordinary NumPyro model with the sites
    `z` and `x` in a plate `data`, and `kaem.params`; so whatever takes a model takes those.

    `KAEM.create` makes one from the shape of data. This makes one of parts:

    Args:
        prior: of the latents of a datum: a NumPyro distribution whose energies (of a `KAPrior`, `KAMixture`, or inside
            of a `MixtureSameFamily`) are learned; or a module, such as `ClusterPrior`, or function without arguments
            that returns a distribution. Batch axes become part of the event. Latents that are a matrix (Q, P) are
            summed over P.
        generator: an Equinox or Flax NNX module, or a function, from latents (..., width) to what the likelihood takes.
            Its arrays are learned. A `SequenceDecoder` draws what depends on the tokens before.
        likelihood: from the generator's output to a NumPyro distribution: a module, whose arrays are learned, a
            function, or the name of one: "bernoulli", for 0 and 1; "normal", for real numbers; "categorical", for
            integers below `num_categories`; "8-bit", for integers from 0 to 255 (`DiscretizedLogistic`).
        shape: of a datum, where the likelihood is given by name and the generator's output is flat.
        encoder: an Equinox or Flax NNX module from a datum, as floating-point numbers (one-hot for "categorical", from
            -1 to 1 for "8-bit"), to location and log-scale of all latents, one after the other. It is the guide of
            training, the proposal of importance sampling and where chains start. None for none.
        noise: standard deviation of "normal"; None for one that is learned, for each channel of three-axis data.
        num_categories: of "categorical".

    Attributes:
        parts: prior, generator, likelihood and encoder, with the values of their parameters.
        shape: of a datum.
        history: of the last training run, as in `FitResult.history`; None before.

    Raises:
        ValueError: for a prior, generator and likelihood whose shapes do not fit, an unknown likelihood.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import KAEM, MLP, BSpline, KAPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(10, 3, (-3.0, 3.0)))
        generator = MLP(jax.random.key(1), 2, 4, (16,))
        kaem = KAEM(KAPrior(energy, dist.Normal(0.0, 1.0)), generator, "normal", noise=0.1)
        x = jnp.sin(jax.random.normal(jax.random.key(2), (200, 1)) + jnp.arange(4))
        kaem = kaem.fit(jax.random.key(3), x, num_epochs=5, progress=False)
        assert kaem.sample(jax.random.key(4), 10).shape == (10, 4)
        ```
    """

    parts: Parts
    shape: tuple[int, ...] = eqx.field(static=True)
    history: dict[str, np.ndarray] | None
    optimizer_state: Any
    is_trained: bool = eqx.field(static=True)

    def __init__(
        self,
        prior: dist.Distribution | eqx.Module | Callable,
        generator: Any,
        likelihood: str | Callable,
        *,
        shape: Sequence[int] | None = None,
        encoder: Any = None,
        noise: float | None = None,
        num_categories: int | None = None,
    ):
        self.parts, self.shape = compose(prior, generator, likelihood, encoder, shape, noise, num_categories)
        self.history, self.optimizer_state, self.is_trained = None, None, False

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        shape: Sequence[int],
        *,
        latent_size: int,
        likelihood: str,
        prior: str | dist.Distribution | eqx.Module | Callable = "independent",
        generator: Any = None,
        encoder: bool | Any = False,
        hidden_sizes: Sequence[int] = (400, 400, 400),
        num_components: int | None = None,
        basis: Basis = DEFAULT_BASIS,
        noise: float | None = None,
        num_categories: int | None = None,
    ) -> KAEM:
        """A model for data of a shape, with parts that suit it.

        Args:
            key: JAX random key.
            shape: of one datum, such as `x.shape[1:]`.
            latent_size: number of latent coordinates, P.
            likelihood: the name of one, as in `KAEM`.
            prior: "independent", one learned density for each coordinate; "univariate", the Kolmogorov-Arnold form of
                the method's paper: densities of shape (Q, P), summed over P, where Q is `num_components`, by default
                2 P + 1; "mixture", a `KAMixture` of `num_components` for each coordinate; "cluster", a `ClusterPrior`
                of `num_components` whole latent vectors; or a prior as in `KAEM`.
            generator: as in `KAEM`. None for a `ConvDecoder` of images with channels (three axes), else an `MLP`.
            encoder: True for the counterpart of the generator, False for none, or a module as in `KAEM`.
            hidden_sizes: of an `MLP`; its encoder has them in reverse.
            num_components: Q of "univariate"; of "mixture" and "cluster", 10 where it is None.
            basis: of the energies.
            noise: standard deviation of "normal"; None for one that is learned, for each channel of three-axis data.
            num_categories: of "categorical".

        Example:
            ```python
            import jax
            from numpyro_kaem import KAEM

            kaem = KAEM.create(jax.random.key(0), (8, 8), latent_size=3, likelihood="bernoulli", prior="cluster")
            print(kaem.summary())
            assert kaem.shape == (8, 8)
            ```
        """
        shape = tuple(check_count("shape", size, 1) for size in shape)
        prior_key, generator_key, encoder_key = jax.random.split(key, 3)
        if isinstance(prior, str):
            prior = make_prior(prior_key, prior, latent_size, num_components, basis)
        event_shape = Parts(prior, None, None).prior_distribution.event_shape
        if isinstance(generator, SequenceDecoder) and num_categories is None:
            num_categories = generator.vocabulary_size
        module = likelihood_by_name(likelihood, shape, noise, num_categories)
        if generator is None:
            generator = default_generator(generator_key, math.prod(event_shape[:1]), module, hidden_sizes)
        if isinstance(encoder, bool):
            size = math.prod(event_shape)
            encoder = default_encoder(encoder_key, module, size, generator, hidden_sizes) if encoder else None
        return cls(prior, generator, module, encoder=encoder)

    @property
    def model(self) -> Model:
        """The NumPyro model: `model(x)`, or `model(num_data=n)` to draw, with the sites `z` and `x`."""
        return Model(self.parts)

    @property
    def params(self) -> dict[str, Any]:
        """Values of the model's parameter sites, as `LatentModel`, samplers and `Predictive` take them."""
        return self.parts.params

    @property
    def prior(self) -> dist.Distribution:
        """The distribution of the latents of a datum, with the values that its parameters have."""
        return self.parts.prior_distribution

    @property
    def guide(self) -> Guide | None:
        """The NumPyro guide that the encoder makes; None without one."""
        return None if self.parts.encoder is None else Guide(self.parts)

    @property
    def guide_params(self) -> dict[str, Any] | None:
        """Values of the guide's parameter sites; None without an encoder."""
        return self.parts.encoder_params

    def at(self, params: dict[str, Any]) -> KAEM:
        """This model with other values of its parameters or its guide's, by site: those that a `FitResult` has, say."""
        sites = self.params | (self.guide_params or {})
        if unknown := sorted(set(params) - set(sites)):
            raise ValueError(f"params has no site of this model: {unknown}; there are {sorted(sites)}")
        return self._with(parts=self.parts.at(sites | params), is_trained=True)

    def fit(
        self,
        key: PRNGKeyArray,
        x: Any,
        *,
        held_out: HeldOut | Any = None,
        continue_optimizer: bool = False,
        **options: Any,
    ) -> KAEM:
        """A copy that is trained from where this one is, by `numpyro_kaem.fit`.

        Where nothing is said the objective is the importance-weighted bound of 5 draws with an encoder; without one
        `ImportanceMLE(1_000)` up to 16 latents and `LangevinMLE(num_steps=10)` above; the optimiser Adam with a cosine
        schedule, slower for the prior than for the rest; batches have a tenth of the rows, from 16 to 200, and a run
        has about 3,000 steps. An encoder is trained by NumPyro's objectives and by `LangevinMLE(start="guide")`; others
        of this package leave it as it is.

        Args:
            key: JAX random key.
            x: data, one datum a row; or an iterable of batches, as in `numpyro_kaem.fit`.
            held_out: data to score on the way, about 20 times, by `held_out_sampler`, or 100 draws from the encoder, or
                up to 1,000 from the prior; or `HeldOut(...)`. With `patience` the best parameters are kept, otherwise
                the last ones (their averages with `ema_decay`).
            continue_optimizer: whether the optimiser begins with the state that the last training left; it must be the
                same one.
            **options: arguments of `numpyro_kaem.fit`, which pass through: `objective`, `optimizer`, `num_epochs`,
                `batch_size`, `held_out_sampler`, `checkpoints`, `mesh`, `callbacks` and all others.

        Raises:
            ValueError: for data of another shape or outside of the likelihood's support (the first place is named), and
                what `numpyro_kaem.fit` raises it for.
        """
        if is_stream(x):
            data, num_data = CheckedBatches(self.parts, self.shape, x), None
        else:
            data = self._check("x", x)
            num_data = len(data)
        options = training_options(self.parts, num_data, options)
        parts = replace(self.parts, adapts=self.parts.adapts or options.get("grid_adaptation") is not None)
        guide = None if parts.encoder is None else Guide(parts)
        objective = options["objective"]
        needs_guide = not isinstance(objective, Objective) or objective.takes_guide
        if held_out is not None:
            settings = held_out if isinstance(held_out, HeldOut) else HeldOut(held_out)
            scored = self._check("held_out", settings.data)
            if settings is not held_out:
                settings = default_held_out(scored, options["num_epochs"], guide, options.get("held_out_sampler"))
            held_out = replace(settings, data=scored, sampler=with_guide(settings.sampler, guide))
            options["held_out_sampler"] = with_guide(options.get("held_out_sampler"), guide)
        if continue_optimizer:
            if self.optimizer_state is None:
                raise ValueError("continue_optimizer needs a model that was trained, or a file saved with its state")
            options["init_optimizer_state"] = self.optimizer_state
        result = fit(key, Model(parts), data, guide=guide if needs_guide else None, held_out=held_out, **options)
        best = isinstance(held_out, HeldOut) and held_out.patience is not None
        params = result.best_params if best else result.averaged_params or result.params
        return self._with(
            parts=parts.at(params | result.guide_params),
            history=result.history,
            optimizer_state=jax.tree.leaves(result.optimizer_state) or None,
            is_trained=True,
        )

    def choose_sampler(self, key: PRNGKeyArray, x: Any) -> Choice:
        """The posterior sampler that suits, and in words why: importance sampling, if it has draws enough.

        Of 32 data it is tried, with 2,000 draws from the encoder, or the prior without one; where nine in ten have an
        effective sample size of 100 it is taken, otherwise tempered SMC.
        """
        return choose_sampler(key, self.parts, self._check("x", x))

    def posterior(self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None) -> Posterior:
        """The posterior of the latents `z` of every datum.

        Args:
            key: JAX random key.
            x: data, one datum a row.
            sampler: any of `numpyro_kaem`; None for the one that `choose_sampler` finds, which the logger
                `numpyro_kaem` tells. One that takes a guide and has none is given the encoder's, if there is one: as
                the proposal of `ImportanceSampling`, and where chains start.
        """
        x = self._check("x", x)
        choice_key, key = jax.random.split(key)
        if sampler is None:
            sampler, reason = choose_sampler(choice_key, self.parts, x)
            _logger.warning("posterior by %s", reason)
        else:
            sampler = with_guide(sampler, self.guide, self.guide_params)
        return sampler.run(key, self.model, self.params, x)

    def log_likelihood(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None
    ) -> Float[np.ndarray, " num_data"]:
        """Log p(x) of every datum, in nats, by tempered SMC, or by another sampler that has an evidence."""
        return self.posterior(key, x, scoring_sampler(sampler)).log_evidence

    def reconstruct(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None, *, num_draws: int = 32
    ) -> Shaped[np.ndarray, "num_data ..."]:
        """What the model makes of the latents of data: the likelihood's mean, averaged over `num_draws` of them.

        For "categorical" that is the most probable category, and for sequences the most probable tokens at one draw.
        """
        sample_key, draw_key = jax.random.split(key)
        draws = self.posterior(sample_key, x, sampler).resample(draw_key, check_count("num_draws", num_draws, 1))
        return mean_of_draws(self.parts, draws.latents["z"])

    def evaluate(
        self,
        key: PRNGKeyArray,
        x: Any,
        sampler: Sampler | None = None,
        *,
        num_scored: int = 100,
        features: Callable | None = None,
    ) -> Evaluation:
        """How good the model is, on data that it was not trained on: a table of scores with their standard errors.

        Args:
            key: JAX random key.
            x: held-out data, one datum a row; draws are compared with all of them.
            sampler: that scores; it must have an evidence. None for tempered SMC.
            num_scored: how many data have their log-likelihood and reconstruction taken, the first ones.
            features: of the distances between data and draws, as in `frechet_distance`. None for the numbers
                themselves (from -1 to 1 for "8-bit"), or their first 64 principal components where there are more;
                for "categorical", how often each category is there.

        Raises:
            ValueError: for data that do not fit, and a sampler without an evidence.
        """
        _warn_if_untrained(self, "evaluate")
        x = np.asarray(self._check("x", x))
        num_scored = min(len(x), check_count("num_scored", num_scored, 2))
        sampler = with_guide(scoring_sampler(sampler), self.guide, self.guide_params)
        return evaluate(self.parts, key, x, sampler, num_scored, features)

    def sample(self, key: PRNGKeyArray, num_samples: int, *, mean: bool = False) -> Array:
        """Data drawn from the model: exact draws from the prior, decoded; or the `mean` of the likelihood at each.

        For "categorical" the mean is the most probable category, and for sequences the most probable tokens.
        """
        _warn_if_untrained(self, "sample")
        return self._draw(key, check_count("num_samples", num_samples, 1), mean)

    def decode(self, z: Float[Array, "*batch ..."]) -> Array:
        """The likelihood's mean at latents, of shape (*batch, *shape).

        For "categorical" that is the most probable category, and for sequences the most probable tokens.
        """
        z = jnp.asarray(z)
        means_of, latent_shape = self._decode
        if z.shape[z.ndim - len(latent_shape) :] != latent_shape:
            raise ValueError(f"z must end in the shape of a latent, {latent_shape}, got {z.shape}")
        batch_shape = z.shape[: z.ndim - len(latent_shape)]
        means = means_of(z.reshape(-1, *latent_shape))
        return means.reshape(*batch_shape, *means.shape[1:])

    def cluster_probabilities(
        self, key: PRNGKeyArray, x: Any, sampler: Sampler | None = None
    ) -> Float[np.ndarray, "num_data num_clusters"]:
        """p(k | x) of every cluster of a `ClusterPrior`: the mean of p(k | z) over the posterior of each datum."""
        prior = self.parts.prior
        if not isinstance(prior, ClusterPrior):
            raise ValueError(f"prior must be a ClusterPrior, got {type(prior).__name__}: KAEM.create(prior='cluster')")
        return self.posterior(key, x, sampler).expectation(lambda latents: prior.probabilities(latents["z"]))

    def summary(self) -> str:
        """A table of the model: its sites, their distributions and shapes, and the numbers of learned parameters."""
        return summary(self.parts, self.shape)

    def to_pandas(self) -> pd.DataFrame:
        """The history of the last training by epoch, as `FitResult.to_pandas` has it."""
        import pandas as pd

        rows = epoch_table(self.history) if self.history else []
        return pd.DataFrame(rows or {"epoch": []}).set_index("epoch")

    def save(self, path: str | os.PathLike, *, history: bool = True, optimizer_state: bool = False) -> None:
        """Write one file, which `KAEM.load` reads: a safetensors file with a manifest in JSON, and no code.

        Args:
            path: of the file, which is replaced as a whole; ".kaem" is usual.
            history: whether to keep the history of training.
            optimizer_state: whether to keep the optimiser's state, for `fit(continue_optimizer=True)`: for Adam, twice
                as many numbers as the model has.
        """
        history = self.history if history else None
        others = {
            "shape": self.shape,
            "is_trained": self.is_trained,
            "history": history and {name: np.asarray(values) for name, values in history.items()},
            "optimizer_state": self.optimizer_state if optimizer_state else None,
        }
        files.save(path, self.parts, others)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        prior: Any = None,
        generator: Any = None,
        likelihood: Any = None,
        encoder: Any = None,
    ) -> KAEM:
        """The model of a file that `save` has written.

        Parts of this package and of NumPyro are read from it. Modules and functions of your own are given again, by
        name: with the arrays that `generator` has when it is given replaced by those of the file.

        Raises:
            FileNotFoundError: where there is no file.
            DamagedFile: for a file that is cut off, altered, or not written by `save`.
            ValueError: for a file of a later version, a part that is missing, or that has other arrays than the saved.
        """
        own = {"prior": prior, "generator": generator, "likelihood": likelihood, "encoder": encoder}
        parts, others = files.load(path, own)
        return object.__new__(cls)._with(parts=parts, **others)

    def export(
        self, path: str | os.PathLike, *, num_samples: int, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
    ) -> None:
        """Write programs that draw without this package, by `jax.export`, into a folder.

        `sample.stablehlo` takes a seed (uint32) and gives the `num_samples` draws of
        `kaem.sample(jax.random.key(seed), num_samples)`. `from_uniforms.stablehlo` takes numbers in (0, 1), a row for
        each sample with one for each latent (and one more, the last, to choose a component of a mixture), and gives
        means of the likelihood at their inverse transforms. `about.json` says what both take and give.

        Args:
            path: of the folder.
            num_samples: draws of one call.
            platforms: that the programs run on, of "cpu", "cuda", "rocm" and "tpu".

        Raises:
            ImportError: without flatbuffers: `pip install 'numpyro_kaem[export]'`.
            ValueError: for a prior that is not made of univariate distributions with `icdf`.
        """
        _warn_if_untrained(self, "export")
        shipping.export(self.parts, path, num_samples, platforms)

    def __repr__(self) -> str:
        parts = self.parts
        names = [type(part).__name__ for part in (parts.prior, parts.generator, parts.likelihood)]
        return f"KAEM({', '.join(names)}, shape={self.shape}, {'trained' if self.is_trained else 'not trained'})"

    @functools.cached_property
    def _draw(self) -> Callable[..., Array]:
        return draw.of(self.parts)

    @functools.cached_property
    def _decode(self) -> tuple[Callable[[Array], Array], tuple[int, ...]]:
        """The means of the likelihoods at latents, and the shape of one."""
        return decode.of(self.parts), self.prior.event_shape

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles have: all but what is kept for the next call."""
        return {name: value for name, value in vars(self).items() if name not in ("_draw", "_decode")}

    def _check(self, name: str, x: Any) -> Array:
        return check_data(self.parts, self.shape, name, x)

    def _with(self, **changes: Any) -> KAEM:
        """A copy with other values of its attributes."""
        changed = object.__new__(type(self))
        for name, value in (self.__getstate__() | changes).items():
            object.__setattr__(changed, name, value)
        return changed


def _warn_if_untrained(kaem: KAEM, method: str) -> None:
    if not kaem.is_trained and kaem.params:
        warnings.warn(
            f"{method} before fit: nothing has been learned, and the parameters are the initial ones; "
            "kaem = kaem.fit(key, x)",
            UserWarning,
            stacklevel=4,
        )
