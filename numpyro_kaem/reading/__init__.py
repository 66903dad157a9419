"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
printed_numbers: Numbers as they are printed, to a few significant digits
families: Named families of densities: in float64, in NumPyro and in SymPy, and fitted to a density
learned_density: Densities of the coordinates of a prior on quadrature nodes: what formulas are compared with
descriptions: Descriptions of a density: a named family, a mixture, or the distribution itself
basis_expressions: The functions of the bases as SymPy expressions
energy_terms: Sparse energies: a reference times the exponential of a few functions of the basis, chosen one by one
univariate_functions: Functions of one variable as a f(b x + c) + d, inner and outer numbers fitted together
kan_formula: Formulas of a Kolmogorov-Arnold network: of each of its functions, and of its outputs
formula: Formulas of what a prior has learned: for every coordinate a table of candidates, one of them the pick
"""

from numpyro_kaem.reading.formula import Candidate, CoordinateFormula, Formula, formula
from numpyro_kaem.reading.kan_formula import EdgeFormula, KANFormula

__all__ = ["Candidate", "CoordinateFormula", "EdgeFormula", "Formula", "KANFormula", "formula"]
