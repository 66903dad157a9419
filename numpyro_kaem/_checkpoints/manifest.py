"""The manifest of a checkpoint: what its files must be, to the byte."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """What is wrong with a checkpoint's files."""


def verify(folder: Path, checksums: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint, after all files have been compared with it (without checksums: their sizes).

    A DamagedError says that one is missing or altered, a ValueError that a newer version of this library wrote it.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        manifest = json.loads(text)
        manifest.pop("sha256")
        if _sealed(manifest) != text:
            raise ValueError("the manifest does not have its own checksum")
    except FileNotFoundError as error:
        raise DamagedError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} is cut short or altered ({error})") from error
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"the checkpoint {folder} has format {manifest['format']}, this version of numpyro_kaem reads format "
            f"{FORMAT}: it was written by version {manifest['environment']['numpyro_kaem']}"
        )
    if manifest["step"] != int(folder.stem):
        raise DamagedError(f"its manifest is of step {manifest['step']}")
    for name, expected in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                raise DamagedError(f"{name} has {size} bytes, {expected['size']} were written")
            if checksums and _sha256(folder / name) != expected["sha256"]:
                raise DamagedError(f"{name} is not what was written (its SHA-256 checksum differs)")
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there in full length."""
    try:
        verify(folder, checksums=False)
    except (DamagedError, ValueError):
        return False
    return True


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Flush all files to the disk and then write down what they are."""
    import orbax.checkpoint as ocp

    files = {}
    for path in sorted(folder.rglob("*")):
        flush(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest["format"], manifest["files"] = FORMAT, files
    manifest["environment"] = {
        # The package has been imported before its modules; importing it from here would go round in a circle.
        "numpyro_kaem": sys.modules["numpyro_kaem"].__version__,
        "jax": jax.__version__,
        "orbax-checkpoint": ocp.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    draft = folder / f"{MANIFEST}.writing"
    draft.write_bytes(_sealed(manifest).encode())
    flush(draft)
    draft.replace(folder / MANIFEST)
    flush(folder)


def _sealed(manifest: dict[str, Any]) -> str:
    """JSON with the checksum of itself."""
    return to_json(manifest | {"sha256": hashlib.sha256(to_json(manifest).encode()).hexdigest()})


def to_json(value: Any) -> str:
    """JSON, always the same for the same value, so that the text of a manifest can be checked."""
    return json.dumps(value, sort_keys=True, indent=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file or the entries of a folder written to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
