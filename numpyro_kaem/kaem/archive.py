"""One file: a manifest in JSON and arrays of safetensors, each with its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "numpyro_kaem"
VERSION = 1


class DamagedFile(ValueError):
    """Raised for a file that is not what was saved: cut off, altered, or of another kind."""


def write(path: str | os.PathLike, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write the file at once: there is the whole one at the end, or what was there before.

    It is a safetensors file, whose metadata hold the manifest as JSON; other tools read its arrays.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(
        {"version": VERSION, "checksums": {name: _checksum(array) for name, array in arrays.items()}, **manifest},
        sort_keys=True,
        allow_nan=False,
    )
    content = save(arrays, metadata={FORMAT: text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
            os.chmod(draft.name, 0o666 & ~_umask())
            os.replace(draft.name, path)
        except BaseException:
            os.unlink(draft.name)
            raise


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the arrays, checked.

    Raises:
        FileNotFoundError: where there is no file.
        DamagedFile: for a file that is cut off, altered, or not one of KAEM's.
        ValueError: for one of a later version of the format.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    content = Path(path).read_bytes()
    try:
        arrays = load(content)
        with safe_open(path, framework="np") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise DamagedFile(f"{os.fspath(path)!r} is cut off or no safetensors file: {error}") from error
    if FORMAT not in metadata:
        raise DamagedFile(f"{os.fspath(path)!r} is a safetensors file that KAEM.save has not written")
    text = metadata[FORMAT]
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
        raise DamagedFile(f"the manifest of {os.fspath(path)!r} has been altered: its checksum does not fit")
    manifest = json.loads(text)
    if manifest["version"] > VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} is of version {manifest['version']} of the format, and this version of numpyro_kaem "
            f"reads up to {VERSION}: install {manifest.get('written_by', 'the version that wrote it')}, or later"
        )
    checksums = manifest["checksums"]
    if missing := sorted(set(checksums) - set(arrays)):
        raise DamagedFile(f"{os.fspath(path)!r} lacks the arrays {missing}")
    if added := sorted(set(arrays) - set(checksums)):
        raise DamagedFile(f"{os.fspath(path)!r} has arrays that were not saved: {added}")
    if changed := sorted(name for name in checksums if _checksum(arrays[name]) != checksums[name]):
        raise DamagedFile(f"arrays of {os.fspath(path)!r} have been altered: {changed}")
    return manifest, arrays


def _checksum(array: np.ndarray) -> str:
    """Of an array's bytes, dtype and shape."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
