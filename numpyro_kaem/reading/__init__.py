"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
outputs: Functions of latents that are read: what they return is checked before anything is compiled
pick_freeze: Pick-freeze designs: pairs of points that swap one or two coordinates, and what the swaps do to a function
effects: Effects: which coordinates explain how much of the variance of what a function makes of latents
modes: Modes of one-dimensional densities, and the probability around each
paths: Paths through latents: a coordinate through its quantiles, and from one latent to another
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
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse
from numpyro_kaem.reading.report import report

__all__ = ["Doubt", "Effects", "Interpolation", "Traversal", "effects", "interpolate", "modes", "report", "traverse"]
