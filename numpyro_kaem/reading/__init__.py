"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
outputs: Functions of latents that are read: what they return is checked before anything is compiled
pick_freeze: Pick-freeze designs: pairs of points that swap one or two coordinates, and what the swaps do to a function
effects: Effects: which coordinates explain how much of the variance of what a function makes of latents
modes: Modes of one-dimensional densities, and the probability around each
paths: Paths through latents: a coordinate through its quantiles, and from one latent to another
display: How a datum is shown in a page: as a picture, a line or a text, which ask nothing of anywhere else
explorer: What the explorer shows: the densities of a model's coordinates, and where on them somebody stands
explorer_page: The page of the explorer, made with Panel: handles, the picture, buttons. Imported when one is asked for
explorer_server: `explore`: a page in a notebook, or served to the browsers of this machine
"""

from numpyro_kaem.reading.effects import Effects, effects
from numpyro_kaem.reading.explorer_server import ExplorerServer, explore
from numpyro_kaem.reading.modes import modes
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse

__all__ = [
    "Effects",
    "ExplorerServer",
    "Interpolation",
    "Traversal",
    "effects",
    "explore",
    "interpolate",
    "modes",
    "traverse",
]
