"""`quill eval` on the command line: one table, or JSON; the digits of training; one line for each mistake."""

import io
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from quillgpt import checkpoint, files
from quillgpt.cli import eval as command
from quillgpt.cli import main as command_line
from quillgpt.cli.eval import blocks, notes, print_table, task_columns
from quillgpt.config import DataConfig, RunConfig, updated
from quillgpt.data.prepare import prepare
from quillgpt.errors import ConfigError, DataError, DiskError, NonFiniteError, QuillError
from quillgpt.evaluate.results import DataRecord, Evaluation, ModelRecord, Result, RuntimeRecord, TaskRecord
from quillgpt.evaluate.tasks import TASK_GROUPS, TASKS
from quillgpt.run_dir import config_toml
from quillgpt.training.loop import train
from small_runs import reseal
from task_files import write_tasks

TASKS_HERE = ["--data-dir", "questions"]


@pytest.fixture(scope="module")
def work(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/byte and runs/bpe, trained on the same text, that text, and questions."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(prepared, folder / "data" / "byte")
    settings = DataConfig(source="text", path=str(prepared.parent / "texts"), tokenizer="bpe")
    prepare(settings, vocab_size=300, out=folder / "data" / "bpe")
    write_tasks(folder / "questions", "hellaswag")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("byte", "bpe"):
            train(run_settings(name))
    return folder


def run_settings(name: str, **more: Any) -> RunConfig:
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 64, "device": "cpu", "compile": "off"}
    small |= {"steps": 4, "batch_size": 4, "threads": 1, "eval_every": 2, "lr": 3e-3, "min_lr": 0.0, "warmup_steps": 0}
    small |= {"source": "text", "data": f"data/{name}", "out": f"runs/{name}", "dtype": "bf16"}
    return updated(RunConfig(), small | more, where="test")


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """What `quill eval ... --json` prints: JSON and nothing else."""
    assert command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(*arguments: str, kind: type[QuillError] = ConfigError) -> str:
    """The error of `quill eval`, one line."""
    with pytest.raises(kind) as caught:
        command.main(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_has_the_digits_that_its_training_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """In bf16, with the run's own micro-batch and threads."""
    (result,) = evaluated(capsys, "runs/byte")
    best = checkpoint.find("runs/byte")
    assert result["scores"]["loss"] == best.manifest.val_loss
    lines = [json.loads(line) for line in Path("runs/byte/metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("val_loss") == best.manifest.val_loss]
    assert result["standard_errors"]["loss"] == line["val_loss_stderr"]
    assert result["scores"]["bits_per_byte"] == line["val_bpb"]
    assert (result["model"]["step"], result["model"]["tokens"]) == (line["step"], line["tokens"])
    assert result["computed"] == {"device": "cpu", "dtype": "bf16", "threads": 1, "torch": torch.__version__}


def test_two_calls_give_the_same_digits_and_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (evaluated(capsys, "runs/byte", "--out", "twice")[0] for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    (path,) = Path("twice").iterdir()
    assert json.loads(path.read_text()) == second


def test_a_checkpoint_is_evaluated_into_its_run_and_the_newest_run_is_the_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (result,) = evaluated(capsys, "runs/byte/checkpoints/step-000004")
    assert result["model"]["step"] == 4
    assert json.loads(Path("runs/byte/evaluations/step-000004-loss-val.json").read_text()) == result
    (result,) = evaluated(capsys)
    assert result["model"]["name"].startswith("runs/")


def test_bytes_are_the_same_for_both_tokenizers(capsys: pytest.CaptureFixture[str]) -> None:
    for data in ("data/byte", "data/bpe", "questions"):
        byte, bpe = evaluated(capsys, "runs/byte", "runs/bpe", "--data", data, "--out", "other")
        assert byte["bytes"] == bpe["bytes"] > 0
        assert byte["data"] == bpe["data"]
        assert byte["items"] > bpe["items"]


def test_as_many_tokens_of_the_training_split_are_scored_as_of_the_other(
    capsys: pytest.CaptureFixture[str], messages: list[str]
) -> None:
    train_split, val_split = evaluated(capsys, "runs/byte", "--splits", "train,val")
    assert (train_split["task"]["split"], val_split["task"]["split"]) == ("train", "val")
    assert train_split["items"] == val_split["items"]
    assert train_split["scores"] != val_split["scores"]
    (line,) = messages
    assert f"the train split's first {val_split['items']:,} tokens" in line


def test_fewer_tokens_are_reported(capsys: pytest.CaptureFixture[str], messages: list[str]) -> None:
    assert command.main(["runs/byte", "--eval-tokens", "100"]) == 0
    assert "100 tokens" in capsys.readouterr().out
    assert json.loads(Path("runs/byte/evaluations/step-000004-loss-val-100.json").read_text())["items"] == 100
    outcome = train(run_settings("byte", eval_tokens=100, out="runs/short"))
    messages.clear()
    (result,) = evaluated(capsys, "runs/short", "--out", "short")
    assert result["items"] > 100
    (line,) = messages
    assert "its training scored the first 100 of" in line
    assert "--eval-tokens 100 repeats that number" in line
    (result,) = evaluated(capsys, "runs/short", "--eval-tokens", "100", "--out", "short")
    assert result["scores"]["loss"] == outcome.validation.loss
    shutil.rmtree("runs/short")


def test_tasks_and_loss_are_in_one_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert command.main(["runs/byte", "runs/bpe", "--tasks", "loss,hellaswag:5", *TASKS_HERE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["loss", "val", "hellaswag-completion", "hellaswag-harness"]
    assert [line.split()[0] for line in lines if line.startswith("runs/")] == ["runs/byte", "runs/bpe"]
    for name in ("hellaswag-completion-5", "hellaswag-harness-5", "loss-val"):
        content = json.loads(Path(f"runs/byte/evaluations/step-000004-{name}.json").read_text())
        number = f"{content['scores'].get('loss', content['scores'].get('accuracy')):.4f} ± "
        assert any(line.startswith("runs/byte") and number in line for line in lines), name


def test_limit_is_for_tasks_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["--tasks", "hellaswag-harness:2,hellaswag-completion", "--limit", "1"]
    results = evaluated(capsys, "runs/byte", *tasks, *TASKS_HERE)
    assert [result["items"] for result in results] == [2, 1]
    assert results[1]["standard_errors"]["accuracy"] == 0.0


def test_the_harness_scores_the_same_questions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    tasks = ["--tasks", "hellaswag-harness", "--harness", "hellaswag", "--dtype", "fp32"]
    ours, theirs = evaluated(capsys, "runs/byte", *tasks, *TASKS_HERE)
    assert theirs["task"]["name"] == "harness-hellaswag"
    assert theirs["scores"] == {"acc": ours["scores"]["accuracy"], "acc_norm": ours["scores"]["accuracy_norm"]}
    assert theirs["standard_errors"]["acc"] == pytest.approx(ours["standard_errors"]["accuracy"])


# --eval-only


def eval_only(tmp_path: Path, config: RunConfig) -> int:
    """Run `quill train RECIPE --eval-only`."""
    path = tmp_path / "recipe.toml"
    path.write_text(config_toml(config))
    return command_line.run(["train", str(path), "--out", config.train.out, "--eval-only"])


def test_eval_only_is_the_same_evaluation(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in here.glob("runs/byte/*.*")}
    assert eval_only(tmp_path, run_settings("byte", eval_tasks="hellaswag:3", task_data="questions")) == 0
    table = capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before  # only evaluations/ changes
    stored = {path.name: json.loads(path.read_text()) for path in here.glob("runs/byte/evaluations/*.json")}
    results = evaluated(capsys, "runs/byte", "--splits", "train,val", "--tasks", "loss,hellaswag:3", *TASKS_HERE)
    assert len(results) == 4
    for result in results:
        task = result["task"]
        name = "-".join(str(part) for part in (task["name"], task["split"], task["limit"]) if part)
        assert {**stored[f"step-000004-{name}.json"], "seconds": 0} == {**result, "seconds": 0}
        assert f"{result['scores'].get('loss', result['scores'].get('accuracy')):.4f} ± " in table


def test_eval_only_evaluates_what_a_new_run_would_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = evaluated(capsys, "runs/byte", "--out", "results")
    assert eval_only(tmp_path, run_settings("byte", init="runs/byte", out="runs/none", dtype="auto", threads=0)) == 0
    stored = json.loads(Path("runs/byte/evaluations/step-000004-loss-val.json").read_text())
    assert stored["scores"] == result["scores"]
    assert eval_only(tmp_path, run_settings("byte", out="runs/none", dtype="fp32")) == 0
    stored = json.loads(Path("evaluations/none-untrained-loss-val.json").read_text())
    assert stored["scores"]["loss"] == pytest.approx(math.log(257), rel=0.05)
    assert stored["model"]["step"] is None
    assert not Path("runs/none").exists()


def test_eval_only_prepares_nothing(tmp_path: Path) -> None:
    config = run_settings("byte", data="auto", path="questions", out="runs/none")
    with pytest.raises(DataError, match="`quill prepare text --tokenizer gpt2 --path questions` makes it"):
        eval_only(tmp_path, config)
    assert not list(Path("data").glob("text-*"))


def test_without_the_text_of_the_published_losses_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))  # the vocabulary is missing too, but smaller
    for words in (["eval", "gpt2"], ["train", "eval-gpt2"]):
        with pytest.raises(DataError) as caught:
            command_line.run(words)
        message = str(caught.value)
        assert message.startswith("gpt2: its data is not in data/openwebtext-gpt2; `quill prepare openwebtext")
        assert "40 GB of text, which become 18 GB of tokens" in message
        assert "--data" in message


# Errors

MISTAKES: list[tuple[list[str], type[QuillError], str]] = [
    (["--tasks", "los"], ConfigError, "invalid tasks: 'los' (did you mean loss?)"),
    (["--tasks", "helaswag"], ConfigError, "(did you mean hellaswag?)"),
    (["--tasks", "loss:5"], ConfigError, "--eval-tokens limits it"),
    (["--tasks", "piqa,piqa"], ConfigError, "piqa twice"),
    (["--tasks", ""], ConfigError, "invalid tasks: ''"),
    (["--splits", "test"], ConfigError, "invalid splits: 'test'"),
    (["--splits", "train", "--data", "questions"], ConfigError, "questions is text without splits"),
    (["--eval-tokens", "-1"], ConfigError, "invalid eval_tokens: -1"),
    (["--limit", "-1"], ConfigError, "invalid limit: -1"),
    (["--limit", "x"], ConfigError, "invalid --limit: 'x' (must be an integer)"),
    (["--batch-size", "2", "--batch-tokens", "8"], ConfigError, "invalid batch_size: 2 (must be 0 if batch_tokens"),
    (["--dtype", "fp8"], ConfigError, "invalid dtype: 'fp8'"),
    (["--device", "tpu"], ConfigError, "invalid device: 'tpu'"),
    (["--errors", "ignore"], ConfigError, "invalid errors: 'ignore'"),
    (["--datta", "x"], ConfigError, "no flag --datta (did you mean --data?)"),
    (["--harness", "no_such_task"], ConfigError, "invalid harness: 'no_such_task'"),
    (["--data", "nowhere"], DataError, "nowhere: no such file or directory"),
    (["--data", "none/*.txt"], DataError, "no file matches this glob; give --data"),
    (["--tasks", "piqa", "--data-dir", "questions"], DataError, "questions"),
]


def test_a_mistake_is_one_line_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_tasks(names: list[str]) -> None:  # to find all tasks takes the harness 6 seconds
        raise ConfigError(f"invalid harness: {names[0]!r}")

    monkeypatch.setattr("quillgpt.evaluate.model.EvaluatedModel.load", None)
    monkeypatch.setattr("quillgpt.evaluate.run.all_tasks", all_tasks)
    found = [(refused("runs/byte", *arguments, kind=kind), expected) for arguments, kind, expected in MISTAKES]
    assert [message for message, expected in found if expected not in message] == []
    assert "gtp2: no such run or checkpoint directory (did you mean gpt2?)" in refused("gtp2", kind=QuillError)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "there is no text in it" in refused("runs/byte", "--data", str(tmp_path / "empty.txt"), kind=DataError)
    out = str(tmp_path / "empty.txt" / "x")
    assert "choose another --out" in refused("runs/byte", "--out", out, kind=DiskError)
    shutil.copytree("runs/byte", tmp_path / "broken")
    saved = tmp_path / "broken" / "checkpoints" / "step-000004"
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    tensors["final_norm.weight"][0] = math.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    record = {"size": weights.stat().st_size, "sha256": files.file_sha256(weights)}
    reseal(saved / "manifest.json", lambda manifest: manifest["files"].update({weights.name: record}))
    message = refused(str(saved), "--tasks", "hellaswag", *TASKS_HERE, kind=NonFiniteError)
    assert "final_norm.weight is not finite" in message


def test_other_data_than_the_run_was_trained_on_is_refused() -> None:
    shutil.copytree("runs/byte", "runs/moved")
    path = Path("runs/moved/environment.json")
    record = json.loads(path.read_text())
    record["data"]["directory"] = "data/bpe"
    path.write_text(json.dumps(record))
    message = refused("runs/moved", kind=DataError)
    shutil.rmtree("runs/moved")
    assert "data/bpe is not the data it was trained on" in message
    assert "--data data/bpe" in message


def test_runs_are_found_with_their_data_from_another_directory(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (result,) = evaluated(capsys, str(here / "runs" / "byte"), "--out", "results")
    assert Path(result["data"]["name"]).samefile(here / "data" / "byte")


# The table


def evaluation(model: str, task: str, scores: dict[str, float], **more: Any) -> Evaluation:
    result = Result(
        task=TaskRecord(name=task, fingerprint="", limit=more.pop("limit", 0), split=more.pop("split", None)),
        data=DataRecord(name="data/x", fingerprint=""),
        scores=scores,
        standard_errors={} if task.startswith("harness") else dict.fromkeys(scores, 0.0123),
        items=10042,
        published={"gpt2": more.pop("published", {})},
        **more,
    )
    record = ModelRecord(name=model, fingerprint=model, parameters=1)
    computed = RuntimeRecord(device="cpu", dtype="fp32", threads=1, torch="")
    return Evaluation(model=record, computed=computed, result=result)


def evaluations() -> list[Evaluation]:
    """Four models on four tasks."""
    found = []
    for model in ("gpt2", "gpt2-medium", "gpt2-large", "runs/a-run-with-a-long-name"):
        for split in ("train", "val"):
            scores = {"loss": 3.1, "bits_per_byte": 1.0, "perplexity": 22.5}
            found.append(evaluation(model, "loss", scores, split=split, bytes=44_000, published={"loss": 3.12}))
        for style in ("completion", "harness"):
            scores = {"accuracy": 0.2859, "accuracy_norm": 0.2955}
            found.append(evaluation(model, f"hellaswag-{style}", scores, published={"accuracy": 0.2859}))
    return found


def printed(evaluations: list[Evaluation], width: int) -> list[str]:
    stream = io.StringIO()
    print_table(evaluations, Console(file=stream, width=width, highlight=False))
    return stream.getvalue().splitlines()


def test_the_table_fits_and_loses_nothing() -> None:
    for width in (40, 80, 100, 140, 250):
        lines = printed(evaluations(), width)
        text = "\n".join(lines)
        assert "…" not in text
        assert (text.count("0.2859"), text.count("0.2859 ± 0.0123"), text.count("3.1000 ± 0.0123")) == (10, 8, 8)
        assert text.count("3.12") == 2
        assert all(f"hellaswag-{style}" in text for style in ("completion", "harness"))
        assert width == 40 or max(map(len, lines)) <= width


def test_a_task_is_cut_only_if_it_does_not_fit() -> None:
    def tasks(room: int) -> list[list[str]]:
        found = blocks(task_columns(evaluations()), room)
        return [[f"{group.task} {len(group.parts)}" for group in block] for block in found]

    completion, harness = "hellaswag-completion 3", "hellaswag-harness 3"
    assert tasks(250) == [["loss train 4", "loss val 4", completion, harness]]
    assert tasks(95) == [["loss train 4"], ["loss val 4"], [completion, harness]]
    pieces = [["loss train 3"], ["loss train 1"], ["loss val 3"], ["loss val 1"]]
    assert tasks(50) == [*pieces, [completion], [harness]]
    assert all(block[0].parts[0][0] != "published" for block in blocks(task_columns(evaluations()), 1))


def test_a_score_without_an_error_is_alone() -> None:
    lines = printed([evaluation("a", "harness-x", {"acc": 0.5})], 80)
    assert "0.5000" in lines[2].split()
    assert "±" not in "".join(lines)


def test_the_notes_say_what_was_scored_and_for_which_models_it_differs() -> None:
    same = [evaluation(name, "loss", {"loss": 1.0}, split="val", bytes=7) for name in "ab"]
    assert notes(same) == ["loss val: 10,042 tokens, 7 bytes of data/x"]
    other = [same[0], evaluation("b", "loss", {"loss": 1.0}, split="val", bytes=8, limit=9)]
    assert [note.rpartition("(")[2] for note in notes(other)] == ["a)", "b)"]
    assert "--eval-tokens 9" in notes(other)[1]


def test_the_help_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in TASKS:
        group = next((group for group, names in TASK_GROUPS.items() if name in names), name)
        assert group in text
        assert group == name or name.removeprefix(group) in text


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with command.progress_on_stderr(is_main_process=False) as progress:
        logging.getLogger("quillgpt").info("x")
        progress("x", 1, 2)
    assert capsys.readouterr() == ("", "")
