"""Formulas of a Kolmogorov-Arnold network: of each of its functions, and of its outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from numpyro_kaem.energies import UnivariateEnergy
from numpyro_kaem.generators import KAN
from numpyro_kaem.reading.basis_expressions import import_sympy
from numpyro_kaem.reading.printed_numbers import shown, signed, significant, to_place_of
from numpyro_kaem.reading.product import as_product
from numpyro_kaem.reading.univariate_functions import FittedFunction, Piece, fitted_functions

_LOG_POINTS = 11  # of Sobol points, to base 2
_QUANTILES = 256  # of the inputs of a function, at which it is fitted
# Shares of the tolerance that a function may use up, until the formula of the whole is within it.
_SHARES = (1.0, 0.25, 1 / 16, 1 / 64, 1 / 256)


@dataclasses.dataclass(frozen=True)
class EdgeFormula:
    """The candidates of one learned function of one variable.

    Attributes:
        layer: from 0.
        input: of the layer.
        output: of the layer.
        share: the function's variance over that of the output of the layer.
        candidates: from simple to complex, up to a constant.
        pick: the simplest one that is near enough for the formula of the whole, or the nearest one.
    """

    layer: int
    input: int
    output: int
    share: float
    candidates: tuple[FittedFunction, ...]
    pick: FittedFunction

    def __str__(self) -> str:
        lines = [f"layer {self.layer}, input {self.input} to output {self.output}, {self.share:.2g} of its variance"]
        lines.append("   complexity       R^2")
        for c in self.candidates:
            mark = "->" if c is self.pick else "  "
            lines.append(f"{mark} {c.complexity:>10}  {c.r_squared:>8.5f}  {signed([p.text('x') for p in c.pieces])}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Node:
    """A sum of terms, each of one input: (input, piece)."""

    constant: float
    terms: tuple[tuple[int, Piece], ...]

    def value(self, x: np.ndarray) -> np.ndarray:
        """At inputs (n, in_size)."""
        return self.constant + sum((p.coefficient * p.value(x[:, i]) for i, p in self.terms), np.zeros(len(x)))


@dataclasses.dataclass(frozen=True)
class KANFormula:
    """What `formula` returns for a `KAN`. Printed, it is the formula of every node, with the R^2 of the outputs.

    Attributes:
        edges: the candidates of every function, layer by layer.
        nodes: the formulas of all layers.
        r_squared: for each output the share of the network's variance that its formula explains, with the printed
            numbers, at points that no number was fitted to.
        tolerance: what an R^2 may lack of one.
    """

    edges: tuple[EdgeFormula, ...]
    nodes: tuple[tuple[_Node, ...], ...] = dataclasses.field(repr=False)
    r_squared: tuple[float, ...]
    tolerance: float

    def edge(self, input: int, output: int, layer: int = 0) -> EdgeFormula:
        """The function from an input to an output of a layer."""
        for edge in self.edges:
            if (edge.layer, edge.input, edge.output) == (layer, input, output):
                return edge
        raise KeyError(f"there is no function from input {input} to output {output} of layer {layer}")

    @property
    def refusal(self) -> str:
        """Why there is no formula of some outputs; empty where there is one of all."""
        refused = [o for o, r_squared in enumerate(self.r_squared) if not r_squared >= 1.0 - self.tolerance]
        if not refused:
            return ""
        worst = min(refused, key=lambda o: self.r_squared[o])
        return (
            f"no formula of {len(refused)} of {len(self.r_squared)} outputs explains {1.0 - self.tolerance:g} of the "
            f"network's variance: the nearest of y{worst} explains {self.r_squared[worst]:.4g}; allow a greater "
            "tolerance or more digits, or narrower inputs"
        )

    def __call__(self, z: Any) -> np.ndarray:
        """Outputs of the printed formulas, in float64, at inputs (..., in_size)."""
        z = np.asarray(z, np.float64)
        x = z.reshape(-1, z.shape[-1])
        for layer in self.nodes:
            x = np.stack([node.value(x) for node in layer], axis=-1)
        return x.reshape(*z.shape[:-1], -1)

    def __str__(self) -> str:
        lines = []
        for number, layer in enumerate(self.nodes):
            source, target = "z" if number == 0 else f"h{number}_", f"h{number + 1}_"
            is_last = number == len(self.nodes) - 1
            for o, node in enumerate(layer):
                terms = [piece.text(f"{source}{i}") for i, piece in node.terms]
                terms += [shown(node.constant)] if node.constant or not terms else []
                name = f"y{o}" if is_last else f"{target}{o}"
                lines.append(f"{name} = {signed(terms)}" + (f"   (R^2 {self.r_squared[o]:.5f})" if is_last else ""))
        return "\n".join([*lines, self.refusal] if self.refusal else lines)

    def to_sympy(self) -> tuple[Any, ...]:
        """The outputs as SymPy expressions of z0, z1, ...

        Raises:
            ImportError: without SymPy: `pip install 'numpyro_kaem[reading]'`.
            ValueError: where a formula is refused.
        """
        sympy = import_sympy()
        if self.refusal:
            raise ValueError(self.refusal)
        in_size = 1 + max(edge.input for edge in self.edges if edge.layer == 0)
        x = [sympy.Symbol(f"z{i}", real=True) for i in range(in_size)]
        for layer in self.nodes:
            x = [
                sympy.Add(sympy.Float(node.constant), *(piece.symbolic(sympy, x[i]) for i, piece in node.terms))
                for node in layer
            ]
        return tuple(x)

    def to_latex(self) -> str:
        """The outputs in LaTeX, one line each.

        Raises:
            ImportError: without SymPy: `pip install 'numpyro_kaem[reading]'`.
            ValueError: where a formula is refused.
        """
        sympy = import_sympy()
        lines = [f"y_{{{o}}} &= {sympy.latex(expression)}" for o, expression in enumerate(self.to_sympy())]
        return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

    def _repr_latex_(self) -> str | None:
        try:
            return f"$${self.to_latex()}$$"
        except (ImportError, ValueError):
            return None

    def to_pandas(self) -> Any:
        """All candidates of all functions as a pandas `DataFrame`, one row each."""
        import pandas

        rows = [
            {
                "layer": edge.layer,
                "input": edge.input,
                "output": edge.output,
                "share": edge.share,
                "complexity": c.complexity,
                "r_squared": c.r_squared,
                "picked": c is edge.pick,
                "expression": signed([piece.text("x") for piece in c.pieces]),
            }
            for edge in self.edges
            for c in edge.candidates
        ]
        return pandas.DataFrame(rows)


def kan_formula(kan: KAN, *, inputs: Any, tolerance: float, digits: int) -> KANFormula:
    """Formulas of a KAN: see `formula`.

    Every function gets its candidates with inner and outer numbers fitted. Then the simplest ones are composed whose
    lost variances add up to less than the tolerance, the outer numbers of every node are fitted once more to what the
    network has there, given the formulas before it, and all is rounded. Where the outputs, at other points, are not
    explained as well as was asked for, functions have to be nearer, and it is composed anew.
    """
    points = [_inputs(kan, inputs, seed) for seed in (0, 1)]
    states = [_states(kan, z) for z in points]
    outputs = states[1][-1]
    if not all(np.all(np.isfinite(state)) for of in states for state in of):
        raise ValueError("prior is a KAN whose outputs are not finite: look at its parameters")
    fits = [_fits(layer, state, target, digits, tolerance) for layer, state, target in _layers(kan, states[0])]
    best: tuple[float, Any] = (-np.inf, None)
    for part in _SHARES:
        picks = [[_picked(c, share, part * tolerance / len(of.shares)) for c, share in of.all()] for of in fits]
        nodes = _composed(picks, states[0], digits)
        x = points[1]
        for layer in nodes:
            x = np.stack([node.value(x) for node in layer], axis=-1)
        r_squared = tuple(_determined(outputs[:, o], x[:, o]) for o in range(outputs.shape[1]))
        if min(r_squared) > best[0] or best[1] is None:
            best = min(r_squared), (picks, nodes, r_squared)
        if min(r_squared) >= 1.0 - tolerance:
            break
    picks, nodes, r_squared = best[1]
    edges = tuple(
        EdgeFormula(
            number, place // of.shares.shape[1], place % of.shares.shape[1], float(share), tuple(candidates), pick
        )
        for number, (of, chosen) in enumerate(zip(fits, picks, strict=True))
        for place, ((candidates, share), pick) in enumerate(zip(of.all(), chosen, strict=True))
    )
    return KANFormula(edges, nodes, r_squared, tolerance)


@dataclasses.dataclass(frozen=True)
class _LayerFits:
    """Candidates of the functions of a layer, in the order of (input, output), and their shares (in, out)."""

    candidates: list[list[FittedFunction]]
    shares: np.ndarray

    def all(self):
        return list(zip(self.candidates, self.shares.ravel(), strict=True))


def _determined(values: np.ndarray, predicted: np.ndarray) -> float:
    """R^2 of a prediction, its constant counted."""
    if not np.all(np.isfinite(predicted)):
        return -np.inf
    variance, error = np.var(values), np.mean((values - predicted) ** 2)
    # An output that does not vary is explained by its value.
    return float(1.0 - error / variance) if variance > 1e-12 * np.mean(values**2) else float(error <= 1e-6)


def _inputs(kan: KAN, inputs: Any, seed: int) -> np.ndarray:
    """Sobol points of the inputs, (n, in_size)."""
    from scipy.stats import qmc

    in_size = kan.layers[0].batch_shape[0]

    def uniform(size: int) -> np.ndarray:
        return qmc.Sobol(size, rng=np.random.default_rng(seed)).random_base2(_LOG_POINTS)

    if isinstance(inputs, dist.Distribution) or callable(inputs):
        product = as_product(inputs)
        sizes = product.shape if len(product.shape) == 2 else (product.size,)
        if sizes[0] != in_size:
            raise ValueError(
                f"inputs must be a prior of the {in_size} inputs of the KAN, got one of shape {product.shape}"
            )
        u = np.clip(uniform(product.size), 1e-6, 1.0 - 1e-6)
        z = np.asarray(product.icdf(jnp.asarray(u)), np.float64)
        return z.sum(axis=-1) if len(product.shape) == 2 else z.reshape(len(z), -1)
    ends = kan.layers[0].basis.domain if inputs is None else inputs
    try:
        low, high = (np.broadcast_to(np.ravel(np.asarray(end, np.float64)), (in_size,)) for end in ends)
    except (TypeError, ValueError):
        low = high = np.zeros(1)
    if not np.all(low < high) or not np.all(np.isfinite([low, high])):
        raise ValueError(
            f"inputs must be a prior of the inputs of the KAN, or (low, high) with low < high, numbers or arrays of "
            f"{in_size}; got {inputs!r}"
        )
    return low + (high - low) * uniform(in_size)


def _states(kan: KAN, z: np.ndarray) -> list[np.ndarray]:
    """What goes into each layer, and the outputs, as the network has them."""
    states, x = [z], jnp.asarray(z)
    for layer in kan.layers:
        x = jnp.sum(_functions(layer, x), axis=1)
        states.append(np.asarray(x, np.float64))
    return states


@jax.jit
def _functions(layer: UnivariateEnergy, x: Array) -> Array:
    """All functions of a layer at its inputs (n, in_size): (n, in_size, out_size)."""
    return layer(x[:, :, None])


def _layers(kan: KAN, states: list[np.ndarray]):
    return zip(kan.layers, states[:-1], states[1:], strict=True)


def _fits(layer: Any, inputs: np.ndarray, outputs: np.ndarray, digits: int, tolerance: float) -> _LayerFits:
    x = np.quantile(inputs, (np.arange(_QUANTILES) + 0.5) / _QUANTILES, axis=0)
    x = np.asarray(jnp.asarray(x), np.float64)
    values = np.asarray(_functions(layer, jnp.asarray(x)), np.float64)
    shares = np.var(values, axis=0) / np.maximum(np.var(outputs, axis=0), 1e-300)
    # Of a function that hardly matters nothing is looked for beyond zero.
    allowed = _SHARES[-1] * tolerance / len(shares)
    enough = 1.0 - allowed / np.maximum(shares, 1e-300)
    candidates = []
    for i in range(values.shape[1]):
        candidates += fitted_functions(x[:, i], values[:, i], digits, enough[i])
    return _LayerFits(candidates, shares)


def _picked(candidates: list[FittedFunction], share: float, allowed: float) -> FittedFunction:
    """The simplest candidate that loses no more of the output's variance, or the one that loses least."""
    for candidate in candidates:
        if share * (1.0 - candidate.r_squared) <= allowed:
            return candidate
    return max(candidates, key=lambda candidate: candidate.r_squared)


def _composed(
    picks: list[list[FittedFunction]], states: list[np.ndarray], digits: int
) -> tuple[tuple[_Node, ...], ...]:
    """All nodes, their outer numbers fitted to the network's values given the formulas of the layers before."""
    x, layers = states[0], []
    for chosen, target in zip(picks, states[1:], strict=True):
        out_size = target.shape[1]
        nodes = []
        for o in range(out_size):
            terms = [(i, piece) for i in range(len(chosen) // out_size) for piece in chosen[i * out_size + o].pieces]
            nodes.append(_refitted(terms, x, target[:, o], digits))
        layers.append(tuple(nodes))
        x = np.stack([node.value(x) for node in nodes], axis=-1)
    return tuple(layers)


def _refitted(terms: list[tuple[int, Piece]], x: np.ndarray, target: np.ndarray, digits: int) -> _Node:
    """Outer coefficients by least squares, rounded; then the constant, to the last place of what varies."""
    design = np.stack([piece.value(x[:, i]) for i, piece in terms], axis=1) if terms else np.zeros((len(x), 0))
    if terms and np.all(np.isfinite(design)):
        centered = design - design.mean(axis=0)
        size = np.maximum(np.std(centered, axis=0), 1e-300)
        coefficients = np.linalg.lstsq(centered / size, target - target.mean(), rcond=None)[0] / size
        terms = [
            (i, dataclasses.replace(piece, coefficient=significant(float(coefficient), digits)))
            for (i, piece), coefficient in zip(terms, coefficients, strict=True)
        ]
    predicted = _Node(0.0, tuple(terms)).value(x)
    constant = float(np.mean(target - predicted))
    spread = float(np.std(target))
    if spread > 0.0 and np.isfinite(constant):
        constant = to_place_of(constant, spread, digits)
    return _Node(constant if np.isfinite(constant) else 0.0, tuple(terms))
