"""Where `fit` keeps its checkpoints, and how often it writes one."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass

from numpyro_kaem.checks import check_count


@dataclass(frozen=True)
class Checkpointing:
    """Where `fit` keeps checkpoints, and how often: `fit(..., checkpoints=Checkpointing("runs/first", every=500))`.

    If there is a checkpoint of this run it is gone on with: the random keys are then those of the checkpoint, and an
    iterator has to begin where it began at first.

    Args:
        path: of a folder on a file system, one for each run; it is created where it does not exist.
        every: steps between checkpoints, at least 1; None for one at the end of every epoch.
        keep: number of checkpoints kept, at least 1.

    Raises:
        ValueError: for numbers out of range.

    Example:
        ```python
        import tempfile

        import jax
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro_kaem import Checkpointing, ImportanceMLE, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = jax.random.normal(jax.random.key(0), (200,))
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        checkpoints = Checkpointing(tempfile.mkdtemp(), every=10)
        half = fit(jax.random.key(1), model, x, num_epochs=5, batch_size=50, checkpoints=checkpoints, **options)
        whole = fit(jax.random.key(1), model, x, num_epochs=10, batch_size=50, checkpoints=checkpoints, **options)
        assert (whole.history["loss"][:20] == half.history["loss"]).all()
        ```
    """

    path: str | os.PathLike
    _: KW_ONLY
    every: int | None = None
    keep: int = 3

    def __post_init__(self):
        check_count("Checkpointing.keep", self.keep, 1)
        if self.every is not None:
            check_count("Checkpointing.every", self.every, 1)
