"""How a training run ends that cannot go on."""

from __future__ import annotations

from numpyro_kaem.training.result import FitResult


class TrainingFailed(RuntimeError):
    """Raised by `fit` when too many steps in a row were not finite, or none at all was finite.

    Attributes:
        result: what there was before them, as `fit` would have returned it.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro_kaem import ImportanceMLE, TrainingFailed, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Exponential(jnp.exp(z)), obs=x)  # its density is zero at negative x


        x = jax.random.normal(jax.random.key(0), (100,))
        options = {"objective": ImportanceMLE(50), "optimizer": optax.adam(0.1), "progress": False}
        try:
            fit(jax.random.key(1), model, x, num_epochs=3, batch_size=25, **options)
        except TrainingFailed as error:
            assert error.result.params["location"] == 0.0
        ```
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result
