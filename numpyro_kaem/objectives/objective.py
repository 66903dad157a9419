"""What the training objectives of this package share: NumPyro losses that may keep a state of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer.elbo import ELBO
from numpyro.primitives import mutable

from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.models.structure import initial_values
from numpyro_kaem.posterior.proposal import read_guide

# The mutable site of an objective's state, `{"metrics": ..., "shared": ..., "per_datum": ...}`.
STATE = "objective$state"


class Objective(ELBO):
    """A NumPyro loss for models whose latents are inside one data plate; without a guide, but where it takes one.

    A subclass says what the loss of a batch is, in `evaluate`, and what is recorded of a step, in `metric_shapes`. The
    loss is a sum over the B data of the batch, each of which stands for `scale` data of the plate:

        loss = -( scale sum_b log-likelihood of datum b  +  log-densities outside of the data plate ).

    It may keep a state between steps: metrics of the last step, what is tuned, and chains of every datum. The state is
    a `numpyro.mutable` site, which `fit` makes and keeps; in NumPyro's own `SVI` the guide `objective.guide(model)`
    declares it. Without one nothing is recorded.

    Args:
        plate: name of the data plate, where the model has several.

    Raises:
        ValueError: when called, for a model with latent sites outside of the data plate, or a guide with sites; of an
            objective that takes a guide, for none.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import fit
        from numpyro_kaem.objectives import Objective


        class AtTheOrigin(Objective):
            # Minus log p(x | z = 0): the latents are taken to be at their mean.

            def metric_shapes(self):
                return {"worst": ()}

            def evaluate(self, key, latent_model, state):
                values = jax.vmap(lambda x: latent_model.log_likelihood({"z": jnp.zeros(())}, x))(*latent_model.rows)
                loss = -(latent_model.scale * values.sum() + latent_model.global_log_density())
                return loss, None if state is None else state | {"metrics": {"worst": values.min()}}


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(location + z, 0.5), obs=x)


        x = 2.0 + jax.random.normal(jax.random.key(0), (100,))
        options = {"optimizer": optax.sgd(1e-3), "num_epochs": 20, "batch_size": 50, "progress": False}
        result = fit(jax.random.key(1), model, x, objective=AtTheOrigin(), **options)
        assert jnp.allclose(result.params["location"], x.mean(), atol=0.1)
        assert result.history["worst"].shape == (40,)
        ```
    """

    # NumPyro's settings of losses that average over draws from a guide.
    num_particles = 1
    vectorize_particles = True

    def __init__(self, plate: str | None = None):
        super().__init__()
        self.plate = plate

    @property
    def takes_guide(self) -> bool:
        """Whether the latents come from a guide, whose parameters are learned too: then `evaluate_guided` is called."""
        return False

    def initial_state(self, latent_model: LatentModel, num_data: int) -> dict[str, Any]:
        """The state before the first step.

        Args:
            latent_model: the model at its initial parameters.
            num_data: number of data for which state is kept.

        Returns:
            `metrics`, by name with the shapes of `metric_shapes`; `shared`, arrays of any shapes; `per_datum`, arrays
            of shape (num_data, ...).
        """
        metrics = {name: jnp.full(shape, jnp.nan) for name, shape in self.metric_shapes().items()}
        return {"metrics": metrics, "shared": {}, "per_datum": {}}

    def metric_shapes(self) -> dict[str, tuple[int, ...]]:
        """What is recorded of every step, and its shape: `()` for a scalar."""
        raise NotImplementedError

    def check(self, latent_model: LatentModel) -> None:
        """What `fit` asks before it trains: raise an error where the objective does not suit the model."""

    def evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """The loss of a batch, and the state after it.

        Args:
            key: JAX random key.
            latent_model: the model with the batch as its data; what is differentiated are its parameters.
            state: as `initial_state` makes it, `per_datum` of the rows of the batch alone in `fit`; None where nothing
                is kept.

        Returns:
            The loss, of shape (), and the state with `metrics` of this step and the same shapes; None for None.
        """
        raise NotImplementedError

    def evaluate_guided(
        self, key: PRNGKeyArray, latent_model: LatentModel, encoder: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """As `evaluate`, of an objective that takes a guide.

        Args:
            key: JAX random key.
            latent_model: as in `evaluate`.
            encoder: the guide on the same data, read as if it were a model: its prior is q(z | x). Its parameters are
                differentiated, too.
            state: as in `evaluate`.

        Returns:
            As `evaluate`.
        """
        raise NotImplementedError

    def guide(self, model: Callable, guide: Callable | None = None) -> Callable:
        """A guide for NumPyro's `SVI` that declares the objective's state.

        Args:
            model: the model; its data plate tells how many data there are.
            guide: the guide itself, of an objective that takes one.

        Returns:
            A guide with the sites of the given one, or else without parameter and sample sites.

        Raises:
            ValueError: without a guide, where the objective takes one.
        """
        if guide is None and self.takes_guide:
            raise missing_guide(self)

        def declares_state(*args: Any, **kwargs: Any) -> None:
            with handlers.block():
                params = initial_values(model, args, kwargs, jax.random.key(0))
                latent_model = LatentModel(model, params, *args, plate=self.plate, check=False, **kwargs)
                latent_model.require_per_datum(type(self).__name__)
                size, _ = latent_model.structure.plates[latent_model.plate]
                state = self.initial_state(latent_model, size)
            mutable(STATE, state)
            if guide is not None:
                guide(*args, **kwargs)

        return declares_state

    def read_guide(self, guide: Callable, guide_params: dict[str, Any], latent_model: LatentModel) -> LatentModel:
        """The guide on the model's data, as `evaluate_guided` is given it; a ValueError where it does not suit."""
        encoder = read_guide(handlers.block(guide, hide=[STATE]), guide_params, latent_model)
        assert encoder is not None
        return encoder

    def loss_with_mutable_state(
        self,
        rng_key: PRNGKeyArray,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable | None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss and the mutable state after it, as `numpyro.infer.SVI` asks for them."""
        name = type(self).__name__
        sites = {} if guide is None else handlers.trace(handlers.seed(guide, 0)).get_trace(*args, **kwargs)
        others = set(sites) - {STATE}
        if others and not self.takes_guide:
            raise ValueError(
                f"guide must have no sites with {name}, which finds the latents itself, but it has {sorted(others)}: "
                "pass guide=lambda *args, **kwargs: None"
            )
        model_key, key = jax.random.split(rng_key)
        params = {site: value for site, value in param_map.items() if site != STATE}
        of_guide = {site: value for site, value in params.items() if site in others}
        # A site that the guide has may be one of the model's, too.
        also = initial_values(model, args, kwargs, model_key) if of_guide else {}
        of_model = {site: value for site, value in params.items() if site not in of_guide or site in also}
        latent_model = LatentModel(model, of_model, *args, plate=self.plate, rng_key=model_key, **kwargs)
        latent_model.require_per_datum(name)
        old_state, parameters = param_map.get(STATE), {*latent_model.structure.parameters}
        if self.takes_guide:
            if guide is None or not others:
                raise missing_guide(self)
            encoder = self.read_guide(guide, of_guide, latent_model)
            parameters |= {*encoder.structure.parameters}
            loss, state = self.evaluate_guided(key, latent_model, encoder, old_state)
        else:
            loss, state = self.evaluate(key, latent_model, old_state)
        mutable_state = {site: value for site, value in params.items() if site not in parameters}
        if state is not None:
            # A loop carries the state, whose dtypes must not follow those of the model.
            mutable_state[STATE] = jax.tree.map(lambda new, old: new.astype(old.dtype), state, old_state)
        return {"loss": loss, "mutable_state": mutable_state or None}


def missing_guide(objective: Objective) -> ValueError:
    """What is raised where an objective takes a guide and is given none."""
    return ValueError(
        f"guide must be given with {objective!r}, which draws latents from it: pass guide=..., an encoder; of a KAEM, "
        "KAEM.create(encoder=True) makes one"
    )
