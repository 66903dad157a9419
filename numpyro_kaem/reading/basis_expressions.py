"""The functions of the bases as SymPy expressions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from numpyro_kaem.energies import RBF, RSWAF, Basis, BSpline, Chebyshev, Fourier, Wavelet


def import_sympy() -> Any:
    """SymPy, or an error that says how to get it."""
    try:
        import sympy
    except ImportError as error:
        raise ImportError("formulas as expressions need SymPy: pip install 'numpyro_kaem[reading]'") from error
    return sympy


def activation_expression(sympy: Any, name: str, z: Any) -> Any:
    """A base activation of z."""
    return {"silu": lambda: z / (1 + sympy.exp(-z)), "tanh": lambda: sympy.tanh(z), "identity": lambda: z}[name]()


def combination_expression(sympy: Any, basis: Basis, terms: dict[int, float], z: Any) -> Any:
    """The linear combination of some functions of a basis, by their numbers, at a z inside of the domain.

    Raises:
        NotImplementedError: for a basis of another class.
    """
    low, high = (float(end) for end in basis.domain)
    if isinstance(basis, BSpline):
        return _spline(sympy, basis, terms, z)
    x = (z - sympy.Float(low)) / sympy.Float(high - low)
    return sympy.Add(*(sympy.Float(value) * _function(sympy, basis, number, x) for number, value in terms.items()))


def _function(sympy: Any, basis: Basis, number: int, x: Any) -> Any:
    if isinstance(basis, Fourier):
        if number == 0:
            return sympy.Integer(1)
        wave = sympy.cos if number <= basis.num_frequencies else sympy.sin
        return wave(2 * sympy.pi * ((number - 1) % basis.num_frequencies + 1) * x)
    if isinstance(basis, Chebyshev):
        return sympy.chebyshevt(number, 2 * x - 1)
    if isinstance(basis, RBF | RSWAF | Wavelet):
        t = (x * (basis.num_centers - 1) - number) / sympy.Float(float(basis.scale))
        if isinstance(basis, RBF):
            return sympy.exp(-(t**2))
        if isinstance(basis, RSWAF):
            return 1 / sympy.cosh(t) ** 2
        return {
            "mexican_hat": lambda: (1 - t**2) * sympy.exp(-(t**2) / 2),
            "morlet": lambda: sympy.cos(5 * t) * sympy.exp(-(t**2) / 2),
            "dog": lambda: -t * sympy.exp((1 - t**2) / 2),
        }[basis.kind]()
    raise NotImplementedError(f"there is no expression of the functions of a {type(basis).__name__}")


def _spline(sympy: Any, basis: BSpline, terms: dict[int, float], z: Any) -> Any:
    """A polynomial on every cell, through the spline's values in it: powers of the distance from the cell's middle."""
    knots = np.asarray(basis.breakpoints, np.float64)
    degree = basis.degree
    nodes = np.cos(np.pi * (2 * np.arange(degree + 1) + 1) / (2 * degree + 2))
    pieces = []
    for low, high in pairwise(knots):
        half, middle = 0.5 * (high - low), 0.5 * (low + high)
        values = basis.design_matrix(middle + half * nodes)[:, list(terms)] @ np.array(list(terms.values()))
        powers = np.linalg.solve(np.vander(half * nodes, increasing=True), values)
        powers = [power if abs(power) * half**k > 1e-13 else 0.0 for k, power in enumerate(powers)]
        polynomial = sympy.Add(*(sympy.Float(p) * (z - sympy.Float(middle)) ** k for k, p in enumerate(powers) if p))
        pieces.append((polynomial, z <= sympy.Float(high)))
    merged = [
        piece for piece, after in zip(pieces, [*pieces[1:], None], strict=True) if not after or piece[0] != after[0]
    ]
    return sympy.Piecewise(*merged[:-1], (merged[-1][0], True))
