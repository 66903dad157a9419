"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
outputs: Functions of latents that are read: what they return is checked before anything is compiled
pick_freeze: Pick-freeze designs: pairs of points that swap one or two coordinates, and what the swaps do to a function
effects: Effects: which coordinates explain how much of the variance of what a function makes of latents
modes: Modes of one-dimensional densities, and the probability around each
paths: Paths through latents: a coordinate through its quantiles, and from one latent to another
printed_numbers: Numbers as they are printed, to a few significant digits
families: Named families of densities: in float64, in NumPyro and in SymPy, and fitted to a density
learned_density: Densities of the coordinates of a prior on quadrature nodes: what formulas are compared with
descriptions: Descriptions of a density: a named family, a mixture, or the distribution itself
basis_expressions: The functions of the bases as SymPy expressions
energy_terms: Sparse energies: a reference times the exponential of a few functions of the basis, chosen one by one
univariate_functions: Functions of one variable as a f(b x + c) + d, inner and outer numbers fitted together
kan_formula: Formulas of a Kolmogorov-Arnold network: of each of its functions, and of its outputs
formula: Formulas of what a prior has learned: for every coordinate a table of candidates, one of them the pick
memorisation: Nearest training examples of what a model draws, and whether draws are nearer to them than other data are
display: How a datum is shown in a page: as a picture, a line or a text, which ask nothing of anywhere else
coordinates: All that is read of the coordinates of a prior, ranked by effect: densities, formulas, maps and paths
findings: What a report says: all that is computed of a model, its training, its data and what it draws, in one object
distrust: What of a report to distrust: rules, each a statement about what was found that has a figure and a cure
page: What the templates of a report are filled with: findings as words, figures, paths and pictures
report: A report of a model in one file: a page that asks nothing of any server, or a model card
"""

from numpyro_kaem.reading.distrust import Doubt
from numpyro_kaem.reading.effects import Effects, effects
from numpyro_kaem.reading.formula import Candidate, CoordinateFormula, Formula, formula
from numpyro_kaem.reading.kan_formula import EdgeFormula, KANFormula
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse
from numpyro_kaem.reading.report import report

__all__ = [
    "Candidate",
    "CoordinateFormula",
    "Doubt",
    "EdgeFormula",
    "Effects",
    "Formula",
    "Interpolation",
    "KANFormula",
    "Traversal",
    "effects",
    "formula",
    "interpolate",
    "modes",
    "report",
    "traverse",
]
