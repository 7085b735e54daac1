"""`quill eval` as it is typed: one table, or JSON; the digits of training; one line a mistake."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from question_files import write_hellaswag
from quillgpt import checkpoint, files
from quillgpt.cli import eval as command
from quillgpt.cli import main as command_line
from quillgpt.cli.eval_table import blocks, groups, notes, print_table
from quillgpt.config import DataConfig, RunConfig, updated
from quillgpt.data.prepare import prepare
from quillgpt.errors import ConfigError, DataError, DiskError, NonFiniteError, QuillError
from quillgpt.evaluate.results import Computed, DataRecord, Evaluation, ModelRecord, TaskRecord
from quillgpt.evaluate.tasks import TASK_GROUPS, TASKS
from quillgpt.run_dir import config_toml
from quillgpt.train.loop import train


@pytest.fixture(scope="module")
def work(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/byte and runs/bpe, trained on the same text, that text, and questions."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(prepared, folder / "data" / "byte")
    settings = DataConfig(source="text", path=str(prepared.parent / "texts"), tokenizer="bpe")
    prepare(settings, vocab_size=300, out=folder / "data" / "bpe")
    write_hellaswag(folder / "questions")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("byte", "bpe"):
            train(run_settings(name))
    return folder


def run_settings(name: str, **more: Any) -> RunConfig:
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32, "device": "cpu", "compile": "off"}
    small |= {"steps": 4, "batch_size": 4, "threads": 1, "eval_every": 2, "lr": 3e-3, "min_lr": 0.0, "warmup_steps": 0}
    small |= {"source": "text", "data": f"data/{name}", "out": f"runs/{name}", "dtype": "bf16"}
    return updated(RunConfig(), small | more, where="test")


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """What `quill eval ... --json` prints, which is JSON and nothing else."""
    assert command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(*arguments: str, kind: type[QuillError] = ConfigError) -> str:
    """The one line of a refusal, before which nothing is computed."""
    with pytest.raises(kind) as caught:
        command.main(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_has_the_digits_that_its_training_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """In bf16, with the run's own micro-batch and threads."""
    (result,) = evaluated(capsys, "runs/byte")
    best = checkpoint.find("runs/byte")
    assert result["scores"]["loss"] == best.held_out_loss
    lines = [json.loads(line) for line in Path("runs/byte/metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("held_out_loss") == best.held_out_loss]
    assert result["standard_errors"]["loss"] == line["held_out_standard_error"]
    assert result["scores"]["bits_per_byte"] == line["held_out_bits_per_byte"]
    assert result["model"]["step"] == line["step"]
    assert result["model"]["tokens"] == line["tokens"]
    assert result["computed"] == {"device": "cpu", "dtype": "bf16", "threads": 1, "torch": torch.__version__}


def test_two_calls_give_the_same_digits_and_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (evaluated(capsys, "runs/byte", "--out", "twice")[0] for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    (path,) = Path("twice").iterdir()
    assert json.loads(path.read_text()) == second


def test_a_checkpoint_is_evaluated_into_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = evaluated(capsys, "runs/byte/checkpoints/step-000004")
    assert result["model"]["step"] == 4
    assert json.loads(Path("runs/byte/evaluations/step-000004-loss-val.json").read_text()) == result


def test_bytes_are_the_same_for_both_tokenizers(capsys: pytest.CaptureFixture[str]) -> None:
    for data in ("data/byte", "data/bpe", "questions"):
        byte, bpe = evaluated(capsys, "runs/byte", "runs/bpe", "--data", data, "--out", "other")
        assert byte["bytes"] == bpe["bytes"] > 0
        assert byte["data"] == bpe["data"]
        assert byte["items"] > bpe["items"]


def test_of_the_training_split_as_many_tokens_are_scored_as_of_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["runs/byte", "--splits", "train,val", "--json"]) == 0
    out, told = capsys.readouterr()
    of_train, of_val = json.loads(out)
    assert (of_train["task"]["split"], of_val["task"]["split"]) == ("train", "val")
    assert of_train["items"] == of_val["items"]
    assert of_train["scores"] != of_val["scores"]
    assert f"the train split's first {of_val['items']:,} tokens" in told


def test_fewer_tokens_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["runs/byte", "--eval-tokens", "100"]) == 0
    assert "100 tokens" in capsys.readouterr().out
    assert json.loads(Path("runs/byte/evaluations/step-000004-loss-val-100.json").read_text())["items"] == 100


def test_a_run_that_scored_a_part_is_told_how_to_repeat_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = train(run_settings("byte", eval_tokens=100, out="runs/short"))
    assert command.main(["runs/short", "--json"]) == 0
    out, told = capsys.readouterr()
    shutil.rmtree("runs/short/evaluations")
    assert json.loads(out)[0]["items"] > 100
    assert "its training scored the first 100 of" in told
    (result,) = evaluated(capsys, "runs/short", "--eval-tokens", "100")
    assert result["scores"]["loss"] == outcome.held_out.loss
    shutil.rmtree("runs/short")


def test_tasks_and_loss_come_in_one_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    tasks = ["--tasks", "loss,hellaswag:5", "--data-dir", "questions"]
    assert command.main(["runs/byte", "runs/bpe", *tasks]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["loss", "val", "hellaswag-completion", "hellaswag-harness"]
    assert [line.split()[0] for line in lines if line.startswith("runs/")] == ["runs/byte", "runs/bpe"]
    for name in ("hellaswag-completion-5", "hellaswag-harness-5", "loss-val"):
        content = json.loads(Path(f"runs/byte/evaluations/step-000004-{name}.json").read_text())
        number = f"{content['scores'].get('loss', content['scores'].get('accuracy')):.4f} ± "
        assert any(line.startswith("runs/byte") and number in line for line in lines), name


def test_limit_is_for_tasks_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = "hellaswag-harness:2,hellaswag-completion"
    results = evaluated(capsys, "runs/byte", "--tasks", tasks, "--data-dir", "questions", "--limit", "1")
    assert [result["items"] for result in results] == [2, 1]
    assert results[1]["standard_errors"]["accuracy"] == 0.0


def test_the_harness_scores_the_same_questions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    tasks = ["--tasks", "hellaswag-harness", "--harness", "hellaswag", "--data-dir", "questions", "--dtype", "fp32"]
    ours, theirs = evaluated(capsys, "runs/byte", *tasks)
    assert theirs["task"]["name"] == "harness-hellaswag"
    assert theirs["scores"] == {"acc": ours["scores"]["accuracy"], "acc_norm": ours["scores"]["accuracy_norm"]}
    assert theirs["standard_errors"]["acc"] == pytest.approx(ours["standard_errors"]["accuracy"])


def test_the_newest_run_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = evaluated(capsys)
    assert result["model"]["name"].startswith("runs/")


# --eval-only


def recipe_of(config: RunConfig, path: Path) -> str:
    path.write_text(config_toml(config))
    return str(path)


def test_eval_only_is_the_same_evaluation(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_settings("byte", eval_tasks="hellaswag:3", task_data="questions")
    before = {path: path.read_bytes() for path in here.glob("runs/byte/*.*")}
    words = [recipe_of(config, tmp_path / "same.toml"), "--out", "runs/byte", "--eval-only"]
    assert command_line.run(["train", *words]) == 0
    table = capsys.readouterr().out
    stored = {path.name: json.loads(path.read_text()) for path in here.glob("runs/byte/evaluations/*.json")}
    assert {path: path.read_bytes() for path in before} == before  # a run is looked at, not changed
    more = ["--splits", "train,val", "--tasks", "loss,hellaswag:3", "--data-dir", "questions"]
    results = evaluated(capsys, "runs/byte", *more)
    assert len(results) == 4
    for result in results:
        task = result["task"]
        name = "-".join(str(part) for part in (task["name"], task["split"], task["limit"]) if part)
        other = stored[f"step-000004-{name}.json"]
        assert {**other, "seconds": 0} == {**result, "seconds": 0}
        assert f"{result['scores'].get('loss', result['scores'].get('accuracy')):.4f} ± " in table


def test_eval_only_from_python_returns_the_held_out_loss(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = train(run_settings("byte", eval_only=True))
    (result,) = evaluated(capsys, "runs/byte")
    assert (outcome.step, outcome.held_out.loss) == (4, result["scores"]["loss"])
    assert outcome.held_out.bytes == result["bytes"]


def test_eval_only_evaluates_what_a_new_run_would_start_from(capsys: pytest.CaptureFixture[str]) -> None:
    started = train(run_settings("byte", init="runs/byte", eval_only=True, out="runs/none", dtype="auto", threads=0))
    (result,) = evaluated(capsys, "runs/byte")
    assert started.held_out.loss == result["scores"]["loss"]
    untrained = train(run_settings("byte", eval_only=True, out="runs/none", dtype="fp32"))
    assert untrained.held_out.loss == pytest.approx(math.log(257), rel=0.05)
    assert json.loads(Path("evaluations/none-untrained-loss-val.json").read_text())["model"]["step"] is None
    assert not Path("runs/none").exists()


def test_eval_only_prepares_nothing(tmp_path: Path) -> None:
    config = run_settings("byte", data="auto", path="questions", eval_only=True, out="runs/none")
    with pytest.raises(DataError, match="`quill prepare text --tokenizer gpt2 --path questions` makes it"):
        train(config)
    assert not list(Path("data").glob("text-*"))


@pytest.mark.parametrize("words", [["eval", "gpt2"], ["train", "eval-gpt2"]], ids=" ".join)
def test_without_the_text_of_the_published_losses_one_line_says_how_to_get_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no vocabulary"))  # what is missing too, and less to fetch
    with pytest.raises(DataError) as caught:
        command_line.run(words)
    message = str(caught.value)
    assert message.startswith("gpt2: its data is not in data/openwebtext-gpt2; `quill prepare openwebtext")
    assert "40 GB of text, which become 18 GB of tokens" in message
    assert "--data" in message


# What is refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tasks", "los"], "tasks = 'los' does not exist (did you mean loss?)"),
        (["--tasks", "helaswag"], "(did you mean hellaswag?)"),
        (["--tasks", "loss:5"], "--eval-tokens limits it"),
        (["--tasks", "piqa,piqa"], "piqa twice"),
        (["--tasks", ""], "tasks = '' does not exist"),
        (["--splits", "test"], "splits = 'test' does not exist"),
        (["--splits", "train", "--data", "questions"], "questions is text without splits"),
        (["--eval-tokens", "-1"], "eval_tokens = -1 is not possible"),
        (["--limit", "-1"], "limit = -1 is not possible"),
        (["--limit", "x"], "--limit 'x' is not a whole number"),
        (
            ["--batch-size", "2", "--batch-tokens", "8"],
            "batch_size = 2 is not possible: expected 0 beside batch_tokens",
        ),
        (["--dtype", "fp8"], "dtype = 'fp8' does not exist"),
        (["--device", "tpu"], "device = 'tpu' does not exist"),
        (["--errors", "ignore"], "errors = 'ignore' does not exist"),
        (["--datta", "x"], "no flag --datta (did you mean --data?)"),
        (["--harness", "no_such_task"], "harness = 'no_such_task' does not exist"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line_before_any_work(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quillgpt.train.subject.Subject.load", None)
    monkeypatch.setattr("quillgpt.train.evaluate_model.all_tasks", unknown_to_the_harness)  # which takes it 6 seconds
    assert expected in refused("runs/byte", *arguments)


def unknown_to_the_harness(names: list[str]) -> None:
    raise ConfigError(f"harness = {names[0]!r} does not exist")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "nowhere"], "nowhere: no such file or directory"),
        (["--data", "none/*.txt"], "no file matches this glob; give --data"),
        (["--tasks", "piqa", "--data-dir", "questions"], "questions"),
    ],
    ids=" ".join,
)
def test_missing_data_is_told_in_one_line(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.train.subject.Subject.load", None)
    assert expected in refused("runs/byte", *arguments, kind=DataError)


def test_an_unknown_model_is_told_with_the_nearest() -> None:
    assert "gtp2: no such run or checkpoint directory (did you mean gpt2?)" in refused("gtp2", kind=QuillError)


def test_empty_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "there is no text in it" in refused("runs/byte", "--data", str(tmp_path / "empty.txt"), kind=DataError)


def test_data_that_is_not_what_the_run_was_trained_on_is_refused(tmp_path: Path) -> None:
    shutil.copytree("runs/byte", "runs/moved")
    record = json.loads(Path("runs/moved/environment.json").read_text())
    record["data"]["directory"] = "data/bpe"
    Path("runs/moved/environment.json").write_text(json.dumps(record))
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


def test_weights_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    shutil.copytree("runs/byte", tmp_path / "broken")
    saved = tmp_path / "broken" / "checkpoints" / "step-000004"
    tensors = load_file(saved / "model.safetensors")
    tensors["final_norm.weight"][0] = math.nan
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((saved / "manifest.json").read_text())
    content = (saved / "model.safetensors").read_bytes()
    manifest["files"]["model.safetensors"] = {
        "size": len(content),
        "sha256": files.file_sha256(saved / "model.safetensors"),
    }
    (saved / "manifest.json").write_text(json.dumps(manifest))
    message = refused(str(saved), "--tasks", "hellaswag", "--data-dir", "questions", kind=NonFiniteError)
    assert "final_norm.weight is not finite" in message


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another --out" in refused("runs/byte", "--out", str(tmp_path / "file" / "x"), kind=DiskError)


# The table


def evaluation(model: str, task: str, scores: dict[str, float], **more: Any) -> Evaluation:
    return Evaluation(
        model=ModelRecord(name=model, fingerprint=model, parameters=1),
        task=TaskRecord(name=task, fingerprint="", limit=more.pop("limit", 0), split=more.pop("split", None)),
        data=DataRecord(name="data/x", fingerprint=""),
        code="",
        computed=Computed(device="cpu", dtype="fp32", threads=1, torch=""),
        scores=scores,
        standard_errors={} if task.startswith("harness") else dict.fromkeys(scores, 0.0123),
        items=10042,
        seconds=1.0,
        **more,
    )


def everything() -> list[Evaluation]:
    """Four models on four tasks."""
    found = []
    for model in ("gpt2", "gpt2-medium", "gpt2-large", "runs/a-run-with-a-long-name"):
        for split in ("train", "val"):
            scores = {"loss": 3.1, "bits_per_byte": 1.0, "perplexity": 22.5}
            published = {"loss": 3.12} if model == "gpt2" else {}
            found.append(evaluation(model, "loss", scores, split=split, bytes=44_000, published=published))
        for style in ("completion", "harness"):
            scores = {"accuracy": 0.2859, "accuracy_norm": 0.2955}
            published = {"accuracy": 0.2859} if model == "gpt2" else {}
            found.append(evaluation(model, f"hellaswag-{style}", scores, published=published))
    return found


def printed(evaluations: list[Evaluation], width: int) -> list[str]:
    stream = io.StringIO()
    print_table(evaluations, Console(file=stream, width=width, highlight=False))
    return stream.getvalue().splitlines()


def test_a_narrow_table_loses_nothing() -> None:
    text = "\n".join(printed(everything(), 40))
    assert "…" not in text
    assert text.count("0.2859") == 10


@pytest.mark.parametrize("width", [80, 100, 140, 250])
def test_the_table_fits_and_loses_nothing(width: int) -> None:
    lines = printed(everything(), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("3.1000 ± 0.0123") == 8
    assert text.count("0.2859 ± 0.0123") == 8
    assert text.count("3.12") == 2
    assert all(f"hellaswag-{style}" in text for style in ("completion", "harness"))


def test_the_columns_of_a_task_are_only_parted_where_it_fits_nowhere() -> None:
    def tasks(room: int) -> list[list[str]]:
        return [
            [f"{group.task} {len(group.columns)}" for group in block] for block in blocks(groups(everything()), room)
        ]

    completion, harness = "hellaswag-completion 3", "hellaswag-harness 3"
    assert tasks(250) == [["loss train 4", "loss val 4", completion, harness]]
    assert tasks(95) == [["loss train 4"], ["loss val 4"], [completion, harness]]
    parted = [["loss train 3"], ["loss train 1"], ["loss val 3"], ["loss val 1"]]
    assert tasks(50) == [*parted, [completion], [harness]]
    assert all(not block[0].columns[0].is_published for block in blocks(groups(everything()), 1))


def test_a_score_without_an_error_stands_alone() -> None:
    assert "0.5000" in printed([evaluation("a", "harness-x", {"acc": 0.5})], 80)[2].split()
    assert "±" not in "".join(printed([evaluation("a", "harness-x", {"acc": 0.5})], 80))


def test_the_notes_say_what_was_scored_and_where_it_differs() -> None:
    scores = {"loss": 1.0}
    same = [evaluation(name, "loss", scores, split="val", bytes=7) for name in "ab"]
    assert notes(same) == ["loss val: 10,042 tokens, 7 bytes of data/x"]
    other = [same[0], evaluation("b", "loss", scores, split="val", bytes=8, limit=9)]
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
    with command.watcher(is_first=False) as watching:
        watching.say("x")
        watching.progress("x", 1, 2)
    assert capsys.readouterr() == ("", "")
