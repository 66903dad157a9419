"""Keywords of `fit` that have moved into dataclasses, and work for one more version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from numpyro_kaem.training.checkpointing import Checkpointing
from numpyro_kaem.training.held_out import HeldOut

# The keyword that each has moved to, the field there, and how that is written.
_MOVED = {
    "held_out_num_samples": ("held_out", "num_samples", "held_out=HeldOut(data, num_samples=...)"),
    "held_out_every": ("held_out", "every", "held_out=HeldOut(data, every=...)"),
    "patience": ("held_out", "patience", "held_out=HeldOut(data, patience=...)"),
    "checkpoint_dir": ("checkpoints", "path", "checkpoints=path"),
    "checkpoint_every": ("checkpoints", "every", "checkpoints=Checkpointing(path, every=...)"),
    "keep_checkpoints": ("checkpoints", "keep", "checkpoints=Checkpointing(path, keep=...)"),
}


def with_moved_keywords(
    held_out: Any, checkpoints: Any, moved: dict[str, Any]
) -> tuple[HeldOut | None, Checkpointing | None]:
    """The settings of `fit`, from plain data and paths, and from keywords that have moved into them."""
    fields: dict[str, dict[str, Any]] = {"held_out": {}, "checkpoints": {}}
    for name, value in moved.items():
        if name not in _MOVED:
            raise TypeError(f"fit() got an unexpected keyword argument {name!r}")
        keyword, field, new = _MOVED[name]
        message = f"{name} of fit is deprecated and works in this version only: write {new}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        fields[keyword][field] = value
    if held_out is None and fields["held_out"].get("patience") is not None:
        raise ValueError("patience needs held_out data, whose score it waits for")
    checkpoints = fields["checkpoints"].pop("path", checkpoints)
    return (
        _settings(HeldOut, held_out, fields["held_out"]),
        _settings(Checkpointing, checkpoints, fields["checkpoints"]),
    )


def _settings(kind: Callable, given: Any, fields: dict[str, Any]) -> Any:
    """Settings with fields changed; None where there is nothing that they are for."""
    if given is None:
        return None
    return replace(given, **fields) if isinstance(given, HeldOut | Checkpointing) else kind(given, **fields)
