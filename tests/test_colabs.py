"""The notebooks run from start to end, and what is committed of them is small and tidy.

    PYTHONWARNINGS=ignore python tests/test_colabs.py        # refresh the committed outputs
"""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

for needed in ("nbformat", "nbclient", "ipykernel"):
    pytest.importorskip(needed, reason=f"notebooks need {needed}: pip install -e '.[test]'")

import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

COLABS = Path(__file__).parent.parent / "colabs"
REDUCED = {"quickstart": {"limit": 3}, "analysis": {"limit": 6, "validation": 4}}
FIGURES = {"quickstart": ["plot", "run-own"], "analysis": ["frontier", "where", "prm"]}
LARGEST = 300_000  # bytes
LOCAL_PATH = re.compile(r"/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(COLABS / f"{name}.ipynb", as_version=4)


def set_parameters(notebook: nbformat.NotebookNode, **parameters) -> None:
    """Add a cell that sets `parameters` behind the one tagged "parameters", as papermill does."""
    at, = [i for i, cell in enumerate(notebook.cells)
           if "parameters" in cell.metadata.get("tags", ())]
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))


def execute(notebooks: Iterable[nbformat.NotebookNode], folder: Path) -> None:
    """Run all cells of several notebooks in `folder`, side by side: compiling takes one core."""
    async def run() -> None:
        clients = [NotebookClient(notebook, timeout=600, record_timing=False,
                                  resources={"metadata": {"path": str(folder)}})
                   for notebook in notebooks]
        await asyncio.gather(*(client.async_execute() for client in clients))

    asyncio.run(run())


def outputs(notebook: nbformat.NotebookNode) -> dict[str, dict[str, str]]:
    """What each code cell has put out, by its id: MIME type -> content; streams by their names."""
    return {cell.id: {kind: text for output in cell.outputs for kind, text in
                      (output.data if "data" in output else {output.name: output.text}).items()}
            for cell in notebook.cells if cell.cell_type == "code"}


def pictures(shown: dict[str, dict[str, str]]) -> list[str]:
    """The cells that show a figure."""
    return [cell for cell, kinds in shown.items() if "image/png" in kinds]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Outputs of both notebooks on a few problems, in the environment that a user has."""
    folder = tmp_path_factory.mktemp("colabs")
    notebooks = {name: read(name) for name in REDUCED}
    for name, notebook in notebooks.items():
        set_parameters(notebook, **REDUCED[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")  # not those of conftest.py
        patch.delenv("MPLBACKEND", raising=False)
        patch.setenv("TMPDIR", str(folder))  # where the analysis makes its result
        execute(notebooks.values(), folder)
    return {name: outputs(notebook) for name, notebook in notebooks.items()}


def test_quickstart_runs_from_start_to_end(executed):
    shown = executed["quickstart"]
    assert "Device(" in shown["setup"]["text/plain"]
    for cell, writers in (("small-alone", {"small"}), ("routed", {"small", "large"})):
        page = shown[cell]["text/html"]
        assert set(re.findall(r">(small|large)</td>", page)) == writers
        assert "answer " in page
    assert len(re.findall(r"^k = .* solved$", shown["route"]["stdout"], re.M)) == 5
    assert pictures(shown) == FIGURES["quickstart"]


def test_analysis_runs_from_start_to_end(executed):
    shown = executed["analysis"]
    assert shown["sweep"] == {}  # no progress bar
    assert shown["load"]["stdout"].startswith("6 problems, seeds [0, 1]")
    assert "TRIM-Thr" in shown["metrics"]["text/html"]
    assert "caught" in shown["met"]["text/plain"]
    # Of so few problems the chosen setting may be k = 1, which has no drafts to draw.
    assert set(pictures(shown)) | {"where"} == set(FIGURES["analysis"])
    assert "image/png" in shown["where"] or "no drafts" in shown["where"]["text/markdown"]
    assert "answer " in shown["browse"]["stdout"]


@pytest.mark.parametrize("name", REDUCED)
def test_committed_notebook_is_executed_small_and_free_of_this_machine(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (COLABS / f"{name}.ipynb").stat().st_size < LARGEST
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3", "language": "python", "name": "python3"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    found = outputs(notebook)
    assert pictures(found) == FIGURES[name]
    for kinds in found.values():
        assert "stderr" not in kinds  # neither warnings nor progress bars
        assert not any(LOCAL_PATH.search(text) for kind, text in kinds.items()
                       if kind != "image/png")


@pytest.mark.parametrize("name", REDUCED)
def test_notebook_opens_with_one_paragraph_and_has_short_cells(name):
    cells = read(name).cells
    assert re.fullmatch(r"# [^\n]+\n\n[^\n]+(\n[^\n]+)*", cells[0].source)
    assert max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") <= 30


if __name__ == "__main__":
    fresh = {name: read(name) for name in REDUCED}
    execute(fresh.values(), COLABS)
    for name, notebook in fresh.items():
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, COLABS / f"{name}.ipynb")
