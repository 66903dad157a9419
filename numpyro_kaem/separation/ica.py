"""`ICA`: independent components whose densities are learned, with scikit-learn's interface."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import numpyro.distributions as dist

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "numpyro_kaem.ICA needs scikit-learn 1.6 or newer: pip install 'numpyro_kaem[sources]'"
    ) from error

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.distributions import KAPrior
from numpyro_kaem.separation.alternation import separate
from numpyro_kaem.separation.source_densities import TabulatedReference
from numpyro_kaem.separation.whitening import check_columns_vary, check_finite_rows, check_num_components, whitener

# Nats by which the density of a source has to beat a Normal's over all rows, for it to be told from one, and how many
# more for each source: the search finds what is least like a Normal in normal data, too.
_LEAST_GAIN, _LEAST_GAIN_EACH = 10.0, 3.0


class ICA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Independent components x = mean + A z whose densities z_q ~ `KAPrior` are learned, by maximum likelihood.

        log p(x) = sum_q log p_q(z_q) - 1/2 log det(A' A),   z = A^+ (x - mean),

    where the last term is log|det A| for as many sources as features. Other methods fix the densities, and with them
    what they can separate well: here each source has a spline that tilts a heavy-tailed reference, so skewed ones, ones
    with several lumps, with light and with heavy tails can be mixed with one another.

    Maximised is the penalised likelihood, in A and the densities together: preconditioned L-BFGS on the relative
    gradient of the profile likelihood, whose densities are refitted at every step (to binned samples, in NumPy: nothing
    is compiled). It starts from some steps of FastICA.

    Conventions: sources have mean 0 and variance 1 on the training data, and a positive third moment, which fixes their
    signs (that of a symmetric source is left to chance); they are in the order of the variance that they explain, that
    is of the norms of the columns of `mixing_`.

    With fewer components than features the data are first projected on their principal components. Then `score_samples`
    is the log-density of the projection, in orthonormal coordinates of that subspace: what lies outside of it does not
    count, so scores with different `n_components` are not to be compared.

    It needs scikit-learn (`pip install "numpyro_kaem[sources]"`), and passes its `check_estimator`.

    Args:
        n_components: number of sources; None for as many as features.
        reference: the distribution that is tilted, of a source of mean 0 and variance 1: one NumPyro distribution on
            the whole real line. It decides the tails, and what a source looks like where its spline is not needed. None
            for StudentT(5, 0, sqrt(3/5)).
        num_intervals: cells of each cubic spline, over the samples of a source and a margin; samples that are more than
            1.5 times as far from the median as the quantile at 0.005 or 0.995 have the reference's density.
        smoothness: weight of the penalty, 1/2 smoothness int f''(z)^2 dz, as in `KAPrior.from_samples`, the same for
            all sources; None to choose that of each by Akaike's criterion. A large one, 0.1 say, leaves the reference,
            with which sources of light tails are not found.
        max_iter: largest number of steps.
        tol: size of the relative gradient, mean psi(z_q) z_r for q != r, at which the search ends.
        random_state: of the start, and of the rows that it looks at where there are more than 10,000.

    Attributes:
        components_: unmixing matrix, (n_components, n_features).
        mixing_: A, its pseudo-inverse, (n_features, n_components).
        mean_: mean of the features.
        sources_: the densities of the sources, a `KAPrior` of batch shape (n_components,): to plot, to draw from, and
            to use in a NumPyro model.
        smoothness_: of each source.
        n_iter_: steps that were taken.
        n_features_in_: number of features.
        feature_names_in_: their names, where the data have names that are strings.

    Raises:
        TypeError: for arguments or data of another type.
        ValueError: for data that are not finite, have columns that are constant, that others add up to or whose
            variances are beyond float64, or fewer rows than sources; for more components than features; for a reference
            that is not on the whole real line.

    Warns:
        ConvergenceWarning: where max_iter steps were not enough.
        UserWarning: where two sources or more cannot be told from normal ones: any rotation of these is as likely.

    References:
        D. T. Pham and P. Garat, Blind Separation of Mixture of Independent Sources Through a Quasi-Maximum Likelihood
        Approach, IEEE Transactions on Signal Processing 45(7), 1997. P. Ablin, J.-F. Cardoso and A. Gramfort, Faster
        Independent Component Analysis by Preconditioning With Hessian Approximations, IEEE Transactions on Signal
        Processing 66(15), 2018.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import ICA

        rng = np.random.default_rng(0)
        two_lumps = rng.choice([-1.0, 1.0], 2_000) + 0.3 * rng.normal(size=2_000)
        skewed = rng.exponential(size=2_000)
        mixed = np.stack([two_lumps, skewed], axis=1) @ np.array([[1.0, 0.5], [-0.3, 1.0]])

        ica = ICA(random_state=0).fit(mixed)
        recovered = ica.transform(mixed)
        # One source is the one, the other the other, up to sign and order.
        correlations = np.abs(np.corrcoef(recovered.T, [two_lumps, skewed])[:2, 2:])
        assert np.all(correlations.max(axis=1) > 0.999)
        assert ica.sources_.batch_shape == (2,)
        ```
    """

    # Estimators of scikit-learn take anything here, and complain in fit.
    def __init__(
        self,
        n_components=None,
        *,
        reference=None,
        num_intervals=16,
        smoothness=None,
        max_iter=200,
        tol=1e-6,
        random_state=None,
    ):
        self.n_components = n_components
        self.reference = reference
        self.num_intervals = num_intervals
        self.smoothness = smoothness
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> ICA:
        """Find the sources of data.

        Args:
            X: data, (n_samples, n_features).
            y: not used.

        Returns:
            Itself.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Find the sources of data and return them, as `fit` and `transform` do.

        Args:
            X: data, (n_samples, n_features).
            y: not used.

        Returns:
            The sources, (n_samples, n_components).
        """
        return self._fit(X)

    def _fit(self, X: Any) -> np.ndarray:
        """Fit, and return the sources."""
        num_intervals = check_count("num_intervals", self.num_intervals, 1)
        max_iter, tol = check_count("max_iter", self.max_iter, 1), check_positive("tol", self.tol)
        n_components = None if self.n_components is None else check_count("n_components", self.n_components, 1)
        smoothness = None if self.smoothness is None else check_positive("smoothness", self.smoothness)
        if self.reference is not None and not isinstance(self.reference, dist.Distribution):
            raise TypeError(f"reference must be a NumPyro distribution or None, got {self.reference!r}")
        rng = check_random_state(self.random_state)
        x = self._checked(X, reset=True)
        num_sources = check_num_components(n_components, x)
        check_columns_vary(x, getattr(self, "feature_names_in_", None))
        reference = TabulatedReference(self.reference)

        self.__dict__.pop("sources_", None)
        self.mean_ = x.mean(axis=0)
        x = x - self.mean_
        whitening = whitener(x, num_sources)
        found = separate(
            whitening @ x.T,
            reference,
            num_intervals=num_intervals,
            smoothness=smoothness,
            most_steps=max_iter,
            tolerance=tol,
            rng=rng,
        )
        components = found.unmixing @ whitening
        order = np.argsort(-np.linalg.norm(np.linalg.pinv(components), axis=0), kind="stable")
        self.components_ = components[order]
        self.mixing_ = np.linalg.pinv(self.components_)
        self.n_iter_ = max(found.num_steps, 1)
        self._densities, self._reference = found.densities.reordered(order), reference
        self.smoothness_ = self._densities.smoothness
        self._log_volume = 0.5 * float(np.linalg.slogdet(self.mixing_.T @ self.mixing_)[1])
        if not found.converged:
            warnings.warn(
                f"ICA did not converge in {self.n_iter_} steps: the largest element of the relative gradient is "
                f"{found.gradient:.1g}, tol is {tol:g}. Give a larger max_iter, or a larger tol: below about "
                f"1 / sqrt(n_samples) = {len(x) ** -0.5:.1g} the rest is less than chance",
                ConvergenceWarning,
                stacklevel=3,
            )
        sources = found.sources[order]
        self._warn_of_normal_sources(sources)
        return sources.T

    def _warn_of_normal_sources(self, sources: np.ndarray) -> None:
        """Warn where rotations of some sources are as likely as they are."""
        num_sources, n = sources.shape
        normal = -0.5 * np.log(2.0 * np.pi) - 0.5
        gain = n * (self._densities.log_prob(sources, self._reference).mean(axis=1) - normal)
        alike = np.flatnonzero(gain < _LEAST_GAIN + _LEAST_GAIN_EACH * num_sources)
        if len(alike) > 1:
            warnings.warn(
                f"the sources {alike.tolist()} cannot be told from normal ones by {n} rows, and so not from each other:"
                " any rotation of them is as likely. Take what these span as one subspace, give more rows, or fewer "
                "n_components",
                stacklevel=4,
            )

    def transform(self, X: Any) -> np.ndarray:
        """The sources of data.

        Args:
            X: data, (n_samples, n_features).

        Returns:
            z = components_ (x - mean_), (n_samples, n_components).
        """
        check_is_fitted(self)
        return (self._checked(X) - self.mean_) @ self.components_.T

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Data of sources.

        Args:
            X: sources, (n_samples, n_components).

        Returns:
            mean_ + mixing_ z, (n_samples, n_features).
        """
        check_is_fitted(self)
        sources = np.asarray(X, dtype=np.float64)
        if sources.ndim != 2 or sources.shape[1] != len(self.components_):
            raise ValueError(f"X must have shape (n_samples, {len(self.components_)}), got {sources.shape}")
        return self.mean_ + sources @ self.mixing_.T

    def score_samples(self, X: Any) -> np.ndarray:
        """The log-likelihood of each row, in nats.

        Args:
            X: data, (n_samples, n_features).

        Returns:
            sum_q log p_q(z_q) - 1/2 log det(A' A), (n_samples,).
        """
        check_is_fitted(self)
        sources = (self._checked(X) - self.mean_) @ self.components_.T  # transform may return a data frame
        return self._densities.log_prob(sources.T, self._reference).sum(axis=0) - self._log_volume

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log-likelihood of the rows, in nats.

        Args:
            X: data, (n_samples, n_features).
            y: not used.

        Returns:
            The mean of `score_samples`.
        """
        return float(np.mean(self.score_samples(X)))

    @functools.cached_property
    def sources_(self) -> KAPrior:
        """The densities of the sources, of batch shape (n_components,)."""
        check_is_fitted(self)
        return self._densities.prior(self._reference.distribution)

    @property
    def _n_features_out(self) -> int:
        """Number of sources, for the names of the output."""
        return len(self.components_)

    def _checked(self, X: Any, reset: bool = False) -> np.ndarray:
        """Data as float64, or what is wrong with them."""
        if np.ma.is_masked(X):
            raise ValueError(f"X has {np.ma.count_masked(X)} masked values; drop these rows, or fill the values in")
        x = validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=2 if reset else 1
        )
        check_finite_rows(x)
        return x
