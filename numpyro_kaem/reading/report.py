"""A report of a model in one file: a page that asks nothing of any server, or a model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from numpyro_kaem.checks import check_count, check_key
from numpyro_kaem.reading.distrust import Doubt, doubts
from numpyro_kaem.reading.findings import find
from numpyro_kaem.reading.page import content, for_markdown

_TEMPLATES = {".html": "report.html.j2", ".htm": "report.html.j2", ".md": "report.md.j2"}


def report(
    kaem: Any,
    path: str | os.PathLike,
    *,
    key: Any = None,
    x: Any = None,
    held_out: Any = None,
    show: Any = None,
    sampler: Any = None,
    num_scored: int = 24,
    num_paths: int = 48,
    title: str = "Report of a KAEM",
) -> tuple[Doubt, ...]:
    """Write what a model has learned, how good it is, and what of it to distrust, into one file.

    A path that ends in .html gives a page, for a browser, a phone or paper, which has all in it and asks nothing of any
    server. It has the model's table, its training, scores of held-out data, draws, every coordinate in the order of its
    effect, with its density, a formula, a map of where it acts and a slider that plays its path, the training examples
    that draws are nearest to, reconstructions, and how to reproduce it. One that ends in .md gives a model card, with
    the same numbers as text and tables.

    A prior that is a mixture of whole latent vectors, such as a `ClusterPrior`, is read component by component; of one
    whose coordinates depend on each other the report says so, and has all else.

    Args:
        kaem: a trained `KAEM`.
        path: of the file, which is replaced as a whole.
        key: JAX random key; None for `jax.random.key(0)`. The same one gives the same file.
        x: the data that the model was trained on, one datum a row. Without them it is not examined whether it
            overfits or copies them.
        held_out: data that it was not trained on, 4 or more. Without them there are no scores.
        show: from a datum, an array, to what is shown of it: an array of two axes, or three with channels, which is
            drawn as a picture, one of one axis, which is drawn as a line, or a text. None for the datum itself, and
            the numbers of categories in a row.
        sampler: of scores and posteriors, with an evidence; None for the tempered SMC of `KAEM.evaluate`.
        num_scored: data whose log-likelihood and posterior are taken, of both x and held_out: most of the time goes
            there.
        num_paths: how many coordinates have a slider, of all components together.
        title: of the report.

    Returns:
        What to distrust, the grave things first; empty where nothing was found.

    Raises:
        ImportError: without Jinja2: `pip install 'numpyro_kaem[reading]'`.
        TypeError: if kaem is no `KAEM`, key no random key, show no function.
        ValueError: for a path with another ending, data that do not fit the model, numbers out of range, a model whose
            draws are not finite.
        OSError: where the file cannot be written.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import KAEM, ImportanceSampling, report

        kaem = KAEM(dist.Normal(jnp.zeros(2), 1.0), lambda z: z @ jnp.ones((2, 3)), "normal", noise=1.0)
        x = kaem.sample(jax.random.key(0), 300)
        sampler = ImportanceSampling(500, progress=False)
        found = report(kaem, "report.html", x=x[:200], held_out=x[200:], sampler=sampler)
        print([doubt.title for doubt in found])
        ```
    """
    template = _template(path)
    if missing := [name for name in ("parts", "decode", "evaluate", "summary") if not hasattr(kaem, name)]:
        raise TypeError(f"kaem must be a KAEM, but a {type(kaem).__name__} has no {missing[0]}")
    key = jax.random.key(0) if key is None else key
    check_key(key)
    if show is not None and not callable(show):
        raise TypeError(f"show must be a function from a datum to what is shown of it, got {show!r}")
    num_scored, num_paths = check_count("num_scored", num_scored, 2), check_count("num_paths", num_paths, 1)
    data = {name: _checked(kaem, name, values) for name, values in (("x", x), ("held_out", held_out))}
    findings = find(kaem, key, **data, sampler=sampler, num_scored=num_scored, num_paths=num_paths)
    found = doubts(findings)
    given = {name: name for name, value in (("x", x), ("held_out", held_out), ("show", show)) if value is not None}
    given |= {"sampler": repr(sampler)} if sampler is not None else {}
    arguments = {"key": "key", **given, "num_scored": num_scored, "num_paths": num_paths, "title": repr(title)}
    call = f'report(kaem, "{Path(path).name}", {", ".join(f"{name}={value}" for name, value in arguments.items())})'
    _write(Path(path), template.render(content(findings, found, str(title), show, call)).strip() + "\n")
    return found


def _template(path: str | os.PathLike) -> Any:
    """Of the ending of a path, which is checked before anything is computed."""
    path = Path(path)
    if path.suffix.lower() not in _TEMPLATES:
        raise ValueError(f"path must end in .html, for a page, or .md, for a model card, got {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"path must be a file in a folder that there is, got {str(path)!r}")
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("report needs Jinja2: pip install 'numpyro_kaem[reading]'") from error
    name = _TEMPLATES[path.suffix.lower()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("numpyro_kaem.reading"),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": for_markdown, "fenced": lambda text: text.replace("```", "'''")}
    return environment.get_template(name)


def _checked(kaem: Any, name: str, values: Any) -> np.ndarray | None:
    if values is None:
        return None
    if np.shape(values)[:1] and len(values) < 4:
        raise ValueError(f"{name} must have at least 4 data, got {len(values)}")
    return np.asarray(kaem._check(name, values))


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever reads it has the old or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
