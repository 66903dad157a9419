"""Reading a model: what each coordinate does, as numbers, paths, formulas, pictures, a report and a page to play with.

Each file imports from those above it and from earlier rooms only. Models of `KAEM` are handed in, not imported.

product: A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads
"""
