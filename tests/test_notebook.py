"""notebooks/analysis.ipynb is committed without outputs and runs from nothing in an empty folder."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import quillgpt

PATH = Path(__file__).parents[1] / "notebooks" / "analysis.ipynb"
SCORED = """
import json

folder = records[0].path / "evaluations"
folder.mkdir()
score = {"model": {"tokens": 9000}, "task": {"name": "hellaswag-completion"}, "scores": {"accuracy_norm": 0.3125}}
(folder / "step-000008-hellaswag-completion.json").write_text(
    json.dumps(score | {"standard_errors": {"accuracy_norm": 0.01}})
)
records = [read_run(run.path) for run in records]
groups, notes = grouped(records)
"""
LABELS = {
    "trajectory": ["validation", "training", "loss (nats per token)", "tokens trained on", "A  small", "B  small-slow"],
    "verdict": ["validation loss at the end (nats per token)", "B - A"],
    "hellaswag-plot": ["share of right answers", " gpt2 0.2955", "A  small"],
    "distribution": ["probability", "after 'def read(self, name': quill-python"],
    "attention-plot": ["layer 1, head 0", "layer 1, head 1", "takes from", "weight, as a multiple of an even share"],
}
"""texts that each figure must contain"""


def test_only_text_and_code_are_committed() -> None:
    content = json.loads(PATH.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert content["metadata"].keys() == {"kernelspec", "language_info"}
    assert content["metadata"]["language_info"] == {"name": "python"}
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert (cell["metadata"], cell.get("outputs", []), cell.get("execution_count")) == ({}, [], None), cell["id"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    """The executed cells by their ids, with very short runs and an invented HellaSwag score."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(PATH, as_version=4)
    cells = {cell["id"]: cell for cell in notebook.cells}
    assert "STEPS = 120" in cells["settings"].source
    cells["settings"].source = cells["settings"].source.replace("STEPS = 120", "STEPS = 8")
    cells["runs"].source += SCORED
    for name in LABELS:  # print the texts of a figure
        cells[name].source = cells[name].source.replace(
            "plt.show()", "print(*[text.get_text() for text in figure.findobj(plt.Text)], sep='\\n')\nplt.show()"
        )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    assert len(list((folder / "runs").iterdir())) == 6
    return cells


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_each_figure_is_drawn_and_labelled_without_warnings(executed: dict[str, nbformat.NotebookNode]) -> None:
    missing = []
    for name, labels in LABELS.items():
        pictures = [output for output in executed[name].outputs if "image/png" in output.get("data", {})]
        missing += [name] if len(pictures) != 1 else []
        missing += [f"{name}: {label}" for label in labels if label not in printed(executed[name]).splitlines()]
    assert missing == []
    outputs = [(name, output) for name, cell in executed.items() for output in cell.get("outputs", [])]
    assert [f"{name}: {output.text}" for name, output in outputs if output.get("name") == "stderr"] == []


def test_the_notebook_prints_its_results(executed: dict[str, nbformat.NotebookNode]) -> None:
    assert "A  small: seeds [1, 2, 3], 8 steps, lr 0.003" in printed(executed["runs"])
    assert "Validation loss at the end: B - A = " in printed(executed["verdict"])
    assert "no run has been scored yet" not in printed(executed["hellaswag-plot"])


def test_the_axes_of_the_attention_are_the_tokens_of_the_prompt(executed: dict[str, nbformat.NotebookNode]) -> None:
    prompt = re.search(r'PROMPT = "(.*)"', executed["settings"].source)
    assert prompt
    model, tokenizer = quillgpt.load_model("quill-python")
    names = [tokenizer.decode([token]).replace(" ", "␣") for token in tokenizer.encode(prompt[1])]
    lines, axes = printed(executed["attention-plot"]).splitlines(), 2 * model.config.n_head
    assert 3 < len(set(names)) < len(prompt[1])
    assert all(lines.count(name) >= axes * names.count(name) for name in names)
