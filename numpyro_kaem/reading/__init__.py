"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
outputs: Functions of latents that are read: what they return is checked before anything is compiled
pick_freeze: Pick-freeze designs: pairs of points that swap one or two coordinates, and what the swaps do to a function
effects: Effects: which coordinates explain how much of the variance of what a function makes of latents
modes: Modes of one-dimensional densities, and the probability around each
paths: Paths through latents: a coordinate through its quantiles, and from one latent to another
"""

from numpyro_kaem.reading.effects import Effects, effects
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse

__all__ = ["Effects", "Interpolation", "Traversal", "effects", "interpolate", "modes", "traverse"]
