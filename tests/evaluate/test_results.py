"""Scores equal explicit counting, whatever the batch, the order and the ranks; each evaluation is one JSON file."""

import dataclasses
import hashlib
import json
import math
import random
import statistics
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import quillgpt
from quillgpt.config import ModelConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError, NonFiniteError
from quillgpt.evaluate.results import (
    DataRecord,
    Evaluation,
    ModelRecord,
    Result,
    RuntimeRecord,
    TaskRecord,
    accuracy_texts,
    code_fingerprint,
    score_task,
    write_evaluation,
)
from quillgpt.evaluate.tasks import TASKS, Task
from quillgpt.evaluate.tasks.task import Item, subset
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import load_tokenizer
from task_files import lines

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=160, vocab_size=257, dropout=0.5)
BYTE = load_tokenizer("byte")


def scored(name: str, model: GPT, folder: Path, **settings: object) -> Result:
    return dataclasses.replace(score_task(TASKS[name], model, BYTE, directory=folder, **settings), seconds=0.0)


def same_scores(found: Result, expected: Result) -> bool:
    return found.scores == pytest.approx(expected.scores, rel=1e-12) and found.standard_errors == pytest.approx(
        expected.standard_errors, rel=1e-12
    )


@torch.no_grad()
def slow_losses(model: GPT, task: Task, item: Item) -> list[list[float]]:
    """The loss of each token of each continuation, one candidate at a time."""
    model.eval()
    found = []
    for candidate in item.candidates:
        request = task.encode(BYTE, candidate.context, candidate.continuation)
        tokens = [*request.context, *request.continuation]
        assert len(tokens) <= 161
        logits = model(torch.tensor([tokens[:-1]]))[0]
        places = range(len(request.context), len(tokens))
        found.append([-F.log_softmax(logits[place - 1], -1)[tokens[place]].item() for place in places])
    return found


def item_values(task: Task, model: GPT, items: list[Item]) -> dict[str, list[float]]:
    """For each metric the value of each item, as docs/evaluation.md defines it."""
    values: dict[str, list[float]] = {}
    for item in items:
        losses = slow_losses(model, task, item)
        if task.name == "lambada":
            values.setdefault("perplexity", []).append(sum(losses[0]))
            continue
        sums = [sum(row) for row in losses]
        lengths = [
            len(row) if task.name == "hellaswag-completion" else len(candidate.continuation) - 1
            for row, candidate in zip(losses, item.candidates, strict=True)
        ]
        means = [total / length for total, length in zip(sums, lengths, strict=True)]
        values.setdefault("accuracy", []).append(float(sums.index(min(sums)) == item.right))
        if "accuracy_norm" in task.metrics:
            values.setdefault("accuracy_norm", []).append(float(means.index(min(means)) == item.right))
    return values


def test_scores_equal_explicit_counting(model: GPT, folder: Path) -> None:
    for name, task in TASKS.items():
        result = scored(name, model, folder)
        assert tuple(result.scores) == tuple(result.standard_errors) == task.metrics
        assert (result.task.name, result.items, result.task.limit) == (name, 12, 0)
        for metric, values in item_values(task, model, task.read(folder)).items():
            mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(12)
            if metric == "perplexity":
                mean, error = math.exp(mean), math.exp(mean) * error
            assert result.scores[metric] == pytest.approx(mean, rel=1e-9), (name, metric)
            assert result.standard_errors[metric] == pytest.approx(error, rel=1e-9), (name, metric)


class Bigrams(GPT):
    """Its first choice after any token is the token that follows it in a text."""

    def __init__(self, text: str) -> None:
        super().__init__(CONFIG)
        self.following = dict(zip(text.encode(), text.encode()[1:], strict=False))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def hidden(self, tokens: torch.Tensor, cache: object = None) -> torch.Tensor:
        follows = torch.tensor([[self.following.get(token, 0) for token in row] for row in tokens.tolist()])
        return 3 * F.one_hot(follows, 257).double()


def test_lambada_counts_words_whose_every_token_is_the_first_choice(tmp_path: Path) -> None:
    texts = ["the abcd", "xy abcd", "one abce", "we abcd"]
    (tmp_path / "lambada_test.jsonl").write_text(lines({"text": text} for text in texts))
    result = scored("lambada", Bigrams("e abcd"), tmp_path)
    assert result.scores["accuracy"] == 2 / 4  # after "xy" the space is not the first choice
    assert result.standard_errors["accuracy"] == pytest.approx(math.sqrt(1 / 3 / 4))


def test_neither_batch_size_nor_order_changes_a_score(model: GPT, folder: Path, tmp_path: Path) -> None:
    for name, task in TASKS.items():
        for path in task.paths:
            in_order = (folder / path).read_text().splitlines(keepends=True)
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("".join(random.Random(1).sample(in_order, len(in_order))))
        for limit, batch_tokens in ((0, 500), (5, 1)):
            expected = scored(name, model, folder, limit=limit)
            found = scored(name, model, tmp_path, limit=limit, batch_tokens=batch_tokens)
            assert found.items == (limit or 12)
            assert same_scores(found, expected), (name, limit)


def test_a_limit_of_any_size_scores_the_fixed_subset(model: GPT, folder: Path) -> None:
    task = TASKS["hellaswag-completion"]
    items, fingerprint = task.read(folder), scored(task.name, model, folder).task.fingerprint
    values = dict(zip(items, item_values(task, model, items)["accuracy_norm"], strict=True))
    for limit in (1, 2, 7, 12, 13):
        result = scored(task.name, model, folder, limit=limit)
        assert (result.items, result.task.limit) == (min(limit, 12), limit)
        assert result.scores["accuracy_norm"] == pytest.approx(
            statistics.fmean(values[item] for item in subset(items, limit))
        )
        assert result.task.fingerprint == fingerprint
        assert math.isfinite(result.standard_errors["accuracy"])


def test_the_shares_of_the_ranks_add_up_to_the_scores_of_one(
    model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[torch.Tensor] = []
    reduce = "quillgpt.evaluate.results.all_reduce_sum"
    for name in TASKS:
        expected = scored(name, model, folder)
        shares.clear()
        monkeypatch.setattr(reduce, lambda values, ranks: shares.append(values) or values)
        for rank in range(5):
            scored(name, model, folder, ranks=Ranks(rank=rank, world_size=5))
        assert sum(len(share.any(dim=1).nonzero()) for share in shares) <= 12, name  # no item is scored twice
        monkeypatch.setattr(reduce, lambda values, ranks: torch.stack(shares).sum(dim=0))
        together = scored(name, model, folder, ranks=Ranks(rank=3, world_size=5))
        monkeypatch.undo()
        assert same_scores(together, expected), name
    monkeypatch.setattr(reduce, lambda values, ranks: values)
    assert scored("piqa", model, folder, limit=2, ranks=Ranks(rank=7, world_size=8)).items == 2  # none of this rank's


def test_no_random_number_is_drawn_and_the_mode_stays(model: GPT, folder: Path) -> None:
    states = torch.get_rng_state(), random.getstate()
    model.train()
    for name in TASKS:
        assert scored(name, model, folder, limit=3) == scored(name, model, folder, limit=3), name
        assert model.training
    model.eval()
    scored("piqa", model, folder, limit=1)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_cut_contexts_are_counted(folder: Path) -> None:
    model = GPT(dataclasses.replace(CONFIG, context_length=70))
    result = scored("hellaswag-completion", model, folder)
    items = TASKS["hellaswag-completion"].read(folder)
    lengths = [len(one.context) + len(one.continuation) for item in items for one in item.candidates]
    assert result.cut_contexts == sum(length > 71 for length in lengths)
    assert 0 < result.cut_contexts < len(lengths)


def test_a_model_that_does_not_fit_the_task_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"piqa: a continuation of \d+ tokens cannot be scored.*context_length = 8"):
        scored("piqa", GPT(dataclasses.replace(CONFIG, context_length=8)), folder)
    with pytest.raises(ConfigError, match="the model has 300 tokens and byte 257"):
        scored("piqa", GPT(dataclasses.replace(CONFIG, vocab_size=300)), folder)


def test_perplexity_stays_finite(folder: Path) -> None:
    torch.manual_seed(2)
    model = GPT(CONFIG)
    model.token_embedding.weight.data.mul_(50_000)
    assert math.isfinite(scored("lambada", model, folder).scores["perplexity"])


def test_progress_counts_candidates(model: GPT, folder: Path) -> None:
    counts: list[tuple[int, int]] = []
    scored("piqa", model, folder, batch_tokens=300, progress=lambda *count: counts.append(count))
    assert counts[-1] == (24, 24)
    assert {total for _, total in counts} == {24}


def test_the_screen_shows_the_normalized_accuracy_if_there_is_one() -> None:
    line = {"train_loss": 1.0, "lambada_perplexity": 30.0, "lambada_perplexity_standard_error": 2.0}
    scores = {
        "hellaswag_completion_accuracy": 0.25,
        "hellaswag_completion_accuracy_norm": 0.31,
        "lambada_accuracy": 0.5,
    }
    for place, (name, score) in enumerate(scores.items()):
        line |= {name: score, f"{name}_standard_error": 0.03 + 0.01 * place}
    assert accuracy_texts(line) == [("hellaswag-completion", "0.310 ± 0.040"), ("lambada", "0.500 ± 0.050")]


# The record of an evaluation

RESULT = Result(
    task=TaskRecord(name="piqa", fingerprint="t", limit=0),
    data=DataRecord(name="data/tasks", fingerprint="d"),
    scores={"accuracy": 0.5},
    standard_errors={"accuracy": 0.1},
    items=20,
    seconds=1.5,
    published={"runs/a": {"accuracy": 0.4}, "gpt2": {"accuracy": 0.6}},
)
MODEL = ModelRecord(name="runs/a", fingerprint="m", parameters=7, step=400, tokens=9)
RUNTIME = RuntimeRecord(device="cpu", dtype="fp32", threads=1, torch="2")


def evaluation(
    *, model: ModelRecord = MODEL, runtime: RuntimeRecord = RUNTIME, code: str = "c", **result: object
) -> Evaluation:
    return Evaluation(model=model, computed=runtime, code=code, result=dataclasses.replace(RESULT, **result))


def test_the_file_has_the_documented_keys(tmp_path: Path) -> None:
    path = write_evaluation(evaluation(), tmp_path, "step-000400")
    assert path.name == "step-000400-piqa.json"
    assert json.loads(path.read_text()) == {
        "model": {"name": "runs/a", "fingerprint": "m", "parameters": 7, "step": 400, "tokens": 9},
        "task": {"name": "piqa", "fingerprint": "t", "limit": 0, "split": None},
        "data": {"name": "data/tasks", "fingerprint": "d"},
        "code": "c",
        "computed": {"device": "cpu", "dtype": "fp32", "threads": 1, "torch": "2"},
        "scores": {"accuracy": 0.5},
        "standard_errors": {"accuracy": 0.1},
        "items": 20,
        "bytes": 0,
        "cut_contexts": 0,
        "seconds": 1.5,
        "published": {"accuracy": 0.4},
    }


def test_the_name_has_the_task_its_split_and_its_limit() -> None:
    for name, limit, split, expected in (
        ("hellaswag-completion", 200, None, "hellaswag-completion-200"),
        ("loss", 0, "val", "loss-val"),
        ("loss", 500, "train", "loss-train-500"),
    ):
        assert evaluation(task=TaskRecord(name=name, fingerprint="", limit=limit, split=split)).name == expected


def test_only_the_same_model_task_and_data_replace_a_file(tmp_path: Path) -> None:
    first = write_evaluation(evaluation(), tmp_path, "a")
    for same in (
        evaluation(scores={"accuracy": 0.6}),
        evaluation(code="d"),
        evaluation(runtime=dataclasses.replace(RUNTIME, device="cuda:0")),
        evaluation(seconds=2.0),
    ):
        assert write_evaluation(same, tmp_path, "a") == first
        assert [path.name for path in tmp_path.iterdir()] == ["a-piqa.json"]
        assert json.loads(first.read_text()) == same.to_json()
    before, names = first.read_bytes(), {first}
    for other in (
        evaluation(model=dataclasses.replace(MODEL, fingerprint="other")),
        evaluation(task=dataclasses.replace(RESULT.task, fingerprint="other")),
        evaluation(data=dataclasses.replace(RESULT.data, fingerprint="other")),
    ):
        (path,) = {write_evaluation(other, tmp_path, "a") for _ in range(2)}
        assert path not in names
        names.add(path)
        assert first.read_bytes() == before
    first.write_text("{")  # a damaged file is replaced
    assert write_evaluation(evaluation(), tmp_path, "a") == first


def test_a_score_that_is_not_finite_is_an_error_and_not_written(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match=r"runs/a: accuracy of piqa is (nan|inf)"):
            write_evaluation(evaluation(scores={"accuracy": value}), tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_of_the_code_covers_all_its_files() -> None:
    root = Path(quillgpt.__file__).parent
    files = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    content = b"".join(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest() for name, path in files)
    assert code_fingerprint() == hashlib.sha256(content).hexdigest()
