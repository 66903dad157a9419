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
axes: What all pictures are made with: axes, colours that everyone can tell apart, and data as tiles
plot_prior: A picture of a prior: the learned density of every coordinate, its reference, quantiles and credible band
plot_outputs: Pictures of what a model makes: samples, reconstructions, and what happens along paths through its latents
plot_effects: A picture of effects: how much of the output's variance each coordinate explains, and where
plot_training: A picture of training: the loss, held-out scores and all else that a history has, by epoch
plot_tempering: Pictures of tempering and of the evidence: what a ladder does, and which model the data are for
display: How a datum is shown in a page: as a picture, a line or a text, which ask nothing of anywhere else
memorisation: Nearest training examples of what a model draws, and whether draws are nearer to them than other data are
coordinates: All that is read of the coordinates of a prior, ranked by effect: densities, formulas, maps and paths
findings: What a report says: all that is computed of a model, its training, its data and what it draws, in one object
distrust: What of a report to distrust: rules, each a statement about what was found that has a figure and a cure
page: What the templates of a report are filled with: findings as words, figures, paths and pictures
report: A report of a model in one file: a page that asks nothing of any server, or a model card
explorer: What the explorer shows: the densities of a model's coordinates, and where on them somebody stands
explorer_page: The page of the explorer, made with Panel: handles, the picture, buttons. Imported when one is asked for
explorer_server: `explore`: a page in a notebook, or served to the browsers of this machine
methods: What a model says of itself: the methods of a `KAEM` that read it
"""

from numpyro_kaem.reading.distrust import Doubt
from numpyro_kaem.reading.effects import Effects, effects
from numpyro_kaem.reading.explorer_server import ExplorerServer, explore
from numpyro_kaem.reading.formula import Candidate, CoordinateFormula, Formula, formula
from numpyro_kaem.reading.kan_formula import EdgeFormula, KANFormula
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse
from numpyro_kaem.reading.plot_effects import plot_effects
from numpyro_kaem.reading.plot_outputs import plot_interpolation, plot_reconstructions, plot_samples, plot_traversals
from numpyro_kaem.reading.plot_prior import plot_densities
from numpyro_kaem.reading.plot_tempering import plot_evidence, plot_ladder
from numpyro_kaem.reading.plot_training import plot_training
from numpyro_kaem.reading.report import report

__all__ = [
    "Candidate",
    "CoordinateFormula",
    "Doubt",
    "EdgeFormula",
    "Effects",
    "ExplorerServer",
    "Formula",
    "Interpolation",
    "KANFormula",
    "Traversal",
    "effects",
    "explore",
    "formula",
    "interpolate",
    "modes",
    "plot_densities",
    "plot_effects",
    "plot_evidence",
    "plot_interpolation",
    "plot_ladder",
    "plot_reconstructions",
    "plot_samples",
    "plot_training",
    "plot_traversals",
    "report",
    "traverse",
]
