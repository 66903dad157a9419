"""The likelihood of every datum on the nodes of the prior, as a matrix in blocks of rows.

Where the likelihood of a datum is narrower than the nodes are apart, it is integrated on points of its own. The mass of
each is shared by the two nodes beside it: the density of the prior is taken to be linear between nodes there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np

from numpyro_kaem._fitting.exponential_family import panel_nodes
from numpyro_kaem.measurements.covariates import Covariates
from numpyro_kaem.measurements.likelihood import Measurements
from numpyro_kaem.measurements.nodes import NODES_PER_PANEL

_MEMORY = 1 << 29  # bytes of the matrix that are kept; of more, blocks are computed again at every pass
_NARROW = 1.3  # distances of nodes in a standard error, below which a likelihood is too narrow for them
_LOCAL_PANELS, _REACH = 6, 2.4  # for the likelihood of one datum, and how far beyond the interval of two nats


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Of each datum the effect of greatest likelihood, and the ends of the interval where it is two nats less."""

    center: np.ndarray
    log_likelihood: np.ndarray
    low: np.ndarray
    high: np.ndarray
    support: tuple[float, float]  # of effects

    @classmethod
    def of(cls, measurements: Measurements, support: tuple[float, float]) -> Intervals:
        """Those of some measurements, each of which has to be possible."""
        intervals = cls(*measurements.intervals(*support), support)
        impossible = np.isneginf(intervals.log_likelihood)
        if impossible.any():
            raise ValueError(
                "the likelihood must be positive at some effect for every datum, but is zero at all of them for "
                f"{int(impossible.sum())}, the first datum {measurements.index[np.argmax(impossible)]}; leave these "
                "data out, or give a likelihood that allows for them"
            )
        return intervals

    @property
    def error(self) -> np.ndarray:
        """Standard errors of the effects; infinite where the likelihood does not fall on one side."""
        return 0.25 * (self.high - self.low)

    def moved(self, covariates: Covariates, support: tuple[float, float]) -> Intervals:
        """Those of e, of which the effects are made by covariates, inside of its support."""
        ends = (np.clip(covariates.residuals(end), *support) for end in (self.center, self.low, self.high))
        center, low, high = ends
        return Intervals(center, self.log_likelihood, low, high, support)

    def __getitem__(self, rows) -> Intervals:
        return Intervals(self.center[rows], self.log_likelihood[rows], self.low[rows], self.high[rows], self.support)


@dataclasses.dataclass(frozen=True)
class LikelihoodRows:
    """Blocks of exp(L_ij - log_scale_i), computed as often as they are asked for, or kept."""

    blocks: tuple[tuple[slice, Callable[[], np.ndarray]], ...]
    log_scale: np.ndarray
    weights: np.ndarray  # of the data

    @classmethod
    def of(
        cls,
        measurements: Measurements,
        intervals: Intervals,
        nodes: np.ndarray,
        widths: np.ndarray,
        weights: np.ndarray,
    ) -> LikelihoodRows:
        """The matrix for increasing nodes that stand for intervals of some widths, and perhaps one more, a point."""
        dtype = np.dtype(jnp.result_type(float))
        log_scale = np.empty(len(measurements))

        def compute(rows: slice) -> np.ndarray:
            value, log_scale[rows] = _block(measurements, intervals, nodes, widths, rows)
            return value.astype(dtype)

        kept = len(measurements) * len(nodes) * dtype.itemsize <= _MEMORY
        blocks: list[tuple[slice, Callable[[], np.ndarray]]] = []
        for rows in measurements.chunks():
            block = compute(rows)  # also where it is not kept: its scale is needed
            blocks.append((rows, partial(np.asarray, block) if kept else partial(compute, rows)))
        return cls(tuple(blocks), log_scale, weights)

    def __len__(self) -> int:
        return len(self.log_scale)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, block in self.blocks:
            yield rows, block()


def _block(measurements, intervals, nodes, widths, rows) -> tuple[np.ndarray, np.ndarray]:
    log_likelihood = measurements.log_likelihood(nodes[None], rows)
    wrong = np.isnan(log_likelihood) | np.isposinf(log_likelihood)
    if wrong.any():
        row, node = np.argwhere(wrong)[0]
        raise ValueError(
            "the likelihood must have a value at every effect of the prior, but is "
            f"{log_likelihood[row, node]} for datum {measurements.index[rows.start + row]} at the effect "
            f"{nodes[node]:.6g}; learn effects on a scale on which all of them are allowed (a logarithm, log-odds), or "
            "give a reference whose support holds the allowed effects only"
        )
    log_scale = intervals.log_likelihood[rows]
    # Of the likelihood's own maximum, unless that is far from where the nodes are.
    largest = log_likelihood.max(axis=1)
    body = nodes[: len(widths)]
    narrow = is_narrow(intervals[rows], body)
    log_scale = np.where(narrow, log_scale, np.where(np.isneginf(largest), log_scale, largest))
    value = np.exp(log_likelihood - log_scale[:, None])
    if narrow.any():
        at = np.flatnonzero(narrow)
        _, points, log_masses = local_points(measurements, intervals, rows.start + at)
        value[at, : len(body)] = _shared(points, np.exp(log_masses - log_scale[at, None]), body) / widths
    return value, log_scale


def is_narrow(intervals: Intervals, nodes: np.ndarray, least: float = _NARROW) -> np.ndarray:
    """Whether the nodes about its maximum are too far apart for the likelihood of a datum."""
    gap = np.diff(nodes)
    at = np.clip(np.searchsorted(nodes, intervals.center) - 1, 1, len(gap) - 2)
    nearby = np.maximum(np.maximum(gap[at - 1], gap[at]), gap[at + 1])
    inside = (intervals.center > nodes[0]) & (intervals.center < nodes[-1])
    return inside & (intervals.error < least * nearby)


def local_points(
    measurements: Measurements, intervals: Intervals, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of panels about the maximum of single data, nodes, and the log-likelihood times the nodes' weights."""
    of = intervals[rows]
    low = np.maximum(of.center - _REACH * (of.center - of.low), of.support[0])
    high = np.minimum(of.center + _REACH * (of.high - of.center), of.support[1])
    edges = low[:, None] + (high - low)[:, None] * np.arange(_LOCAL_PANELS + 1) / _LOCAL_PANELS
    points, widths = panel_nodes(edges, NODES_PER_PANEL)
    few = measurements.take(rows)
    values = np.concatenate([few.log_likelihood(points[part], part) for part in few.chunks()])
    return edges, points, values + np.log(widths)


def _shared(points: np.ndarray, masses: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Masses at points, shared among the nodes beside them so that their mean stays."""
    num_rows = len(points)
    after = np.clip(np.searchsorted(nodes, points), 1, len(nodes) - 1)
    share = np.clip((points - nodes[after - 1]) / (nodes[after] - nodes[after - 1]), 0.0, 1.0)
    row = np.arange(num_rows)[:, None] * len(nodes)
    flat = np.concatenate([(row + after - 1).ravel(), (row + after).ravel()])
    value = np.concatenate([((1.0 - share) * masses).ravel(), (share * masses).ravel()])
    return np.bincount(flat, value, num_rows * len(nodes)).reshape(num_rows, -1)
