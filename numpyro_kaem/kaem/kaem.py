"""The KAEM object: a prior, a generator and a likelihood, from `fit` to a file."""

from __future__ import annotations
