"""MkDocs hooks: pages and a gallery from the scripts in ``examples/``, and formulas that need no script.

Formulas become MathML, which browsers set by themselves: the pages ask no other server for anything.

A script is in percent format and begins with a Markdown cell whose first line is its title:

    # %% [markdown]
    # # Title
    # One paragraph that says what is shown.

    # %%
    import numpyro_kaem

A cell with the tag "checks" is run but not shown: assertions that hold what the page says.

    # %% tags=["checks"]

Any page may show the figures of a script, the first of which is `![caption](example:quickstart#1)`, and the house of
the package, drawn from its imports, as `<!-- house -->`.

An example that raises fails the build. Results are kept under ``.cache/examples`` until the script or the
package changes, so that a writer's second build is quick.
"""

import base64
import hashlib
import html
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import house
import jupytext
import nbformat
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "examples"
SECONDS_PER_CELL = 1200
SMOKE = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
HOUSE = "<!-- house -->"
CONTRIBUTING = re.compile(r'--8<-- "(CONTRIBUTING\.md)"')
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FIGURE = re.compile(r"\(example:(?P<stem>\w+)#(?P<number>\d+)\)")
SHOWN = ["image/svg+xml", "image/png", "text/markdown", "text/plain"]

log = logging.getLogger("mkdocs.hooks.examples")

# Names of the figures of each script, by its stem; filled when the scripts run.
figures_of: dict[str, list[str]] = {}


def on_config(config):
    """List the examples' pages in the navigation."""
    pages = ["examples/index.md", *(f"examples/{script.stem}.md" for script in scripts())]
    config.nav = [{"Examples": pages} if "Examples" in entry else entry for entry in config.nav]
    return config


def on_files(files, config):
    """Add a page per example, with its figures, and the gallery."""
    cards = []
    # Two at a time: compilation, much of the time of most, uses one core.
    with ThreadPoolExecutor(2) as pool:
        notebooks = list(pool.map(run, scripts()))
    for script, notebook in zip(scripts(), notebooks, strict=True):
        title, summary = heading(notebook, script)
        page, figures = render(notebook, script, title)
        figures_of[script.stem] = list(figures)
        files.append(File.generated(config, f"examples/{script.stem}.md", content=page))
        for name, content in figures.items():
            files.append(File.generated(config, f"examples/{name}", content=content))
        thumbnail = next((f"[![{title}]({name})]({script.stem}.md)\n\n" for name in figures), "")
        cards.append(f"-   {thumbnail}**[{title}]({script.stem}.md)**\n\n{summary}".replace("\n", "\n    "))
    gallery = (
        "# Examples\n\nEvery script is run when this documentation is built; the figures are its own.\n\n"
        '<div class="grid cards" markdown>\n\n' + "\n\n".join(cards) + "\n\n</div>\n"
    )
    files.append(File.generated(config, "examples/index.md", content=gallery))
    return files


def on_page_markdown(markdown, page, config, files):
    """Show figures of examples in a page of the top level, and CONTRIBUTING.md, whose links are from the root."""
    if included := CONTRIBUTING.fullmatch(markdown.strip()):
        folder = Path("docs", page.file.src_path).parent
        text = (ROOT / included[1]).read_text()
        return LINK.sub(lambda link: f"]({os.path.relpath(link[1], folder)}", text)

    def path(match):
        names, number = figures_of.get(match["stem"], []), int(match["number"])
        if SMOKE and names:  # of a few seconds there may be fewer
            number = min(number, len(names))
        if not 1 <= number <= len(names):
            raise PluginError(f"{page.file.src_path}: {match[0]}, but that example has {len(names)} figures")
        return f"(examples/{names[number - 1]})"

    return FIGURE.sub(path, markdown)


def on_page_content(content, page, config, files):
    """Set the formulas of a page, and draw the house."""
    if HOUSE in content:
        content = content.replace(HOUSE, house.draw(house.read_house()))
    return FORMULA.sub(
        lambda match: convert(html.unescape(match["tex"]), display="block" if match["open"] == "[" else "inline"),
        content,
    )


def scripts():
    """Return the example scripts, the quickstart first."""
    return sorted((ROOT / "examples").glob("*.py"), key=lambda path: (path.stem != "quickstart", path.stem))


def run(script):
    """Return the executed notebook of a script, from the cache where nothing has changed since."""
    sources = [script, *sorted((ROOT / "numpyro_kaem").rglob("*.py"))]
    digest = hashlib.sha256(os.environ.get("NUMPYRO_KAEM_SMOKE", "").encode())
    for source in sources:
        digest.update(source.read_bytes())
    cached = CACHE / f"{script.stem}-{digest.hexdigest()[:16]}.ipynb"
    if cached.exists():
        return nbformat.read(cached, as_version=4)

    log.info("Running %s", script.relative_to(ROOT))
    notebook = jupytext.read(script, fmt="py:percent")
    with TemporaryDirectory() as sockets:
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}  # the kernel opens no network port
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(ROOT)}},
            config=Config({"KernelManager": manager}),
        )
        try:
            client.execute()
        except CellExecutionError as error:
            raise PluginError(f"{script.relative_to(ROOT)} failed:\n{error}") from error
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{script.stem}-*.ipynb"):
        old.unlink()
    nbformat.write(notebook, cached)
    return notebook


def heading(notebook, script):
    """Return the title and the first paragraph of an example."""
    first = notebook.cells[0]
    match = re.match(r"# (.+)\n+((?:.+\n?)*)", first.source) if first.cell_type == "markdown" else None
    if match is None:
        raise PluginError(f"{script.relative_to(ROOT)} must begin with a Markdown cell whose first line is its title")
    return match[1].strip(), match[2].strip()


def render(notebook, script, title):
    """Return the page of an example as Markdown, and its figures by file name."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if "checks" not in cell.metadata.get("tags", ())]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]

    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}))
    body, resources = exporter.from_notebook_node(
        notebook, resources={"unique_key": script.stem, "output_files_dir": "."}
    )
    figures = {}
    for name, content in resources["outputs"].items():
        # nbconvert hands out PNG bytes, or, by version, their base64 text.
        raw = content if isinstance(content, bytes) else base64.b64decode(content)
        figures[Path(name).name] = raw
        body = body.replace(f"![png]({name})", f"![Figure of the example: {title}]({Path(name).name})")

    path = script.relative_to(ROOT)
    note = f"\n\n*This page is `{path}`, run when the documentation was built.*\n\n"
    body = re.sub(r"\n(?:[ \t]*\n){3,}", "\n\n", body)
    return re.sub(r"\A(\s*# .+\n)", lambda match: match[1] + note, body), figures


def is_noise(output):
    """Tell what is of use in a terminal but not on a page: progress bars, warnings, reprs of plots."""
    if output.output_type == "execute_result":
        return re.match(r"\[?<matplotlib|\[?Text\(", output.data.get("text/plain", "")) is not None
    return output.get("name") == "stderr"
