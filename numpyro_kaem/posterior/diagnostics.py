"""What samplers do about data whose likelihood is broken or zero."""

from __future__ import annotations

import warnings

import numpy as np


def check_log_likelihood(bad: np.ndarray, indices: np.ndarray, num_draws: int, source: str = "prior") -> None:
    """Raise a ValueError where the log-likelihood is NaN or +inf at draws from the prior or guide, by datum."""
    # A chunk may be filled up with copies of its last datum.
    indices, first_copy = np.unique(indices, return_index=True)
    bad = bad[first_copy]
    if bad.any():
        first = int(np.argmax(bad > 0))
        raise ValueError(
            f"the log-likelihood is NaN or +inf at {int(bad[first])} of {num_draws} draws from the {source} of datum "
            f"{indices[first]} (and of {int(np.sum(bad > 0)) - 1} other data): a likelihood that is zero is -inf; NaN "
            "comes of parameters out of their range, such as a scale that is not positive"
        )


def check_log_ratio(bad: np.ndarray, num_draws: int) -> None:
    """Raise a ValueError where log p(z) - log q(z | x) is NaN or +inf at draws from the guide q, by datum."""
    if bad.any():
        first = int(np.argmax(bad > 0))
        raise ValueError(
            f"log p(z) - log q(z | x) is NaN or +inf at {int(bad[first])} of {num_draws} draws from the guide of datum "
            f"{first} (and of {int(np.sum(bad > 0)) - 1} other data): the guide's parameters may be out of their "
            "range, such as a scale that is not positive, or not finite"
        )


def warn_if_impossible(impossible: np.ndarray, where: str) -> None:
    """Warn of data whose likelihood is zero wherever it was evaluated."""
    if impossible.any():
        warnings.warn(
            f"{impossible.sum()} of {len(impossible)} data have likelihood zero {where}, the first at index "
            f"{np.argmax(impossible)}: their ess is 0 and their log_evidence, where there is one, -inf",
            RuntimeWarning,
            stacklevel=4,
        )
