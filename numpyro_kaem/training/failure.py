"""How a training run ends that cannot go on."""

from __future__ import annotations

from numpyro_kaem.training.result import FitResult


class TrainingFailed(RuntimeError):
    """Raised by `fit` when too many steps in a row were not finite.

    Attributes:
        result: what there was before them, as `fit` would have returned it.
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result
