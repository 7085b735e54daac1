"""lm-evaluation-harness with our models gives our scores of the small files, and correct answers to its questions."""

import json
import math
import random
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quillgpt.errors import ConfigError
from quillgpt.evaluate import harness
from quillgpt.evaluate.harness import HarnessModel, rolling_requests, score_harness
from quillgpt.evaluate.likelihood import Likelihood, likelihoods
from quillgpt.evaluate.results import Result, score_task
from quillgpt.evaluate.tasks import TASKS
from quillgpt.evaluate.tasks.task import Item, subset
from quillgpt.model.gpt import GPT
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import load_tokenizer
from task_files import FILES, lines, write_archive

pytest.importorskip("lm_eval")
BYTE = load_tokenizer("byte")
OURS = [task for task in TASKS.values() if task.harness_name]
METRICS = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}
LIMIT = 9


@dataclass
class Run:
    """The results of the harness, its questions with their answers, and whether the random states are unchanged."""

    results: dict[str, Result] = field(default_factory=dict)
    answers: dict[tuple[str, str], Likelihood] = field(default_factory=dict)
    random_states_are_equal: bool = False


def random_states() -> tuple[object, ...]:
    _, keys, place, *_ = np.random.get_state()
    return random.getstate(), (keys.tolist(), place), torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def run(model: GPT, folder: Path) -> Run:
    """HellaSwag alone, then all others."""
    continuations, run, before = HarnessModel.continuations, Run(), random_states()

    def recorded(self: HarnessModel, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        found = continuations(self, pairs)
        run.answers |= dict(zip(pairs, found, strict=True))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("DISABLE_MULTIPROC", "1")
        patch.setattr(HarnessModel, "continuations", recorded)
        names = [task.harness_name for task in OURS]
        for some in (["hellaswag"], [name for name in names if name != "hellaswag"]):
            for result in score_harness(some, model, BYTE, directory=folder, limit=LIMIT):
                run.results[result.task.name.removeprefix("harness-")] = result
    run.random_states_are_equal = before == random_states()
    return run


def texts_of(items: list[Item]) -> list[tuple[str, str]]:
    return [(one.context, one.continuation) for item in items for one in item.candidates]


def test_the_scores_of_the_harness_are_ours(run: Run, model: GPT, folder: Path) -> None:
    for task in OURS:
        expected = score_task(task, model, BYTE, directory=folder, limit=LIMIT)
        found = run.results[task.harness_name]
        assert {METRICS[metric] for metric in expected.scores} <= set(found.scores)
        for metric, score in expected.scores.items():
            assert found.scores[METRICS[metric]] == pytest.approx(score, rel=1e-12), (task.name, metric)
            error = found.standard_errors[METRICS[metric]]
            if metric == "perplexity":  # the harness resamples for it
                assert error > 0
            else:
                assert error == pytest.approx(expected.standard_errors[metric], rel=1e-12), (task.name, metric)


def test_every_likelihood_of_hellaswag_is_ours(run: Run, model: GPT, folder: Path) -> None:
    task = TASKS["hellaswag-harness"]
    expected = score_task(task, model, BYTE, directory=folder, limit=LIMIT).scores
    assert run.results["hellaswag"].scores == {"acc": expected["accuracy"], "acc_norm": expected["accuracy_norm"]}
    assert 0 < expected["accuracy"] < 1
    pairs = texts_of(subset(task.read(folder), LIMIT))
    assert len(pairs) == 36
    found = likelihoods(model, [task.encode(BYTE, *pair) for pair in pairs])
    assert [run.answers[pair] for pair in pairs] == found


def test_the_harness_asks_about_the_texts_of_our_items(run: Run, folder: Path) -> None:
    assert {pair for task in OURS for pair in texts_of(subset(task.read(folder), LIMIT))} == set(run.answers)


def test_no_random_state_changes(run: Run) -> None:
    assert run.random_states_are_equal
    before = random_states()
    with harness.kept_random_states():
        random.random()
        np.random.rand()
        torch.rand(1)
        assert all(now != then for now, then in zip(random_states(), before, strict=True))
    assert random_states() == before


TEXTS_TASK = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
GENERATION_TASK = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n", "zz"], "max_gen_toks": 7},
    "metric_list": [{"metric": "exact_match"}],
}


def test_tasks_of_texts_and_of_generated_text_run_too(model: GPT, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    model = model.float()
    texts, greedy = ["one two three", "four " * 90, "naïve 🙂"], {"temperature": 0, "max_new_tokens": 7}
    answers = [generate(model, BYTE, text[-153:], **greedy, stop=["\n", "zz"])[0] for text in texts[:2]]
    rows = [{"text": text, "answer": answer} for text, answer in zip(texts, [*answers, "wrong"], strict=True)]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    for name, settings in {"texts": TEXTS_TASK, "generated": GENERATION_TASK}.items():
        data = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        definition = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        definition |= {"metric_list": [{"metric": "bits_per_byte"}]} | settings
        (tmp_path / f"{name}.yaml").write_text(json.dumps(definition))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = harness.evaluate(HarnessModel(model=model, tokenizer=BYTE), ["texts", "generated"], tasks, limit=0)
    nats = sum(slow_loss(model, text) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert found["texts"]["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert found["generated"]["exact_match"] == pytest.approx(2 / 3)
    model.double()


@torch.no_grad()
def slow_loss(model: GPT, text: str) -> float:
    """Nats of all tokens: windows of 160 predictions, the last with as much context as the model can see."""
    tokens = [BYTE.end_of_text, *BYTE.encode(text)]
    nats = 0.0
    for start in range(1, len(tokens), 160):
        end = min(start + 160, len(tokens))
        first = max(0, end - 161)
        logits = F.log_softmax(model(torch.tensor([tokens[first : end - 1]]))[0].double(), dim=-1)
        nats -= sum(logits[place - 1 - first, tokens[place]].item() for place in range(start, end))
    return nats


def test_windows_of_long_texts_are_those_of_the_harness() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for count in range(12):
        tokens = list(range(10, 10 + count))
        windows = get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=4, context_len=1)
        found = rolling_requests(tokens, end_of_text=0, context_length=4)
        pairs = [(list(one.context), list(one.continuation)) for one in found]
        assert pairs == [tuple(make_disjoint_window(window)) for window in windows]
        assert [token for one in found for token in one.continuation] == tokens


def test_generation_is_greedy_and_stops_at_a_string_or_the_most_tokens(model: GPT) -> None:
    def answer(prompt: str, **settings: object) -> str:
        return HarnessModel(model=model, tokenizer=BYTE).answer(prompt, settings)

    full = answer("once", max_gen_toks=12)
    assert full == generate(model, BYTE, "once", max_new_tokens=12, temperature=0)[0]
    assert len(BYTE.encode(answer("once", until=[], max_gen_toks=3, do_sample=False))) <= 9
    stop = full[3]
    for settings in ({"until": [stop]}, {"until": stop, "do_sample": True, "temperature": 0}):
        assert answer("once", max_gen_toks=12, **settings) == full[: full.index(stop)]
    prompt = "".join(chr(97 + number % 26) for number in range(400))  # its end is kept, with room for the answer
    assert answer(prompt, max_gen_toks=10) == answer(prompt[-150:], max_gen_toks=10)
    assert isinstance(answer(prompt, max_gen_toks=500, until=["\n"]), str)
    assert answer("", max_gen_toks=2) == generate(model, BYTE, "", max_new_tokens=2, temperature=0)[0]
    with pytest.raises(ConfigError, match="asks for sampled text; only greedy"):
        answer("once", do_sample=True, temperature=0.7)


def test_a_missing_harness_and_unknown_tasks_are_refused(
    model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = types.SimpleNamespace(task_index={"hellaswag": None, "wikitext": None})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: known)  # to find all tasks takes seconds
    with pytest.raises(ConfigError, match=r"invalid harness: 'wikitxt' \(did you mean wikitext\?\)"):
        score_harness(["hellaswag", "wikitxt"], model, BYTE, directory=folder)
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'quillgpt\[harness\]'"):
        score_harness(["hellaswag"], model, BYTE, directory=folder)


def test_a_directory_has_the_data_of_a_task_as_files_or_as_archive(folder: Path, tmp_path: Path) -> None:
    assert all(harness.has_data(task.harness_name, folder) for task in OURS)
    assert not harness.has_data("piqa", tmp_path)
    assert not harness.has_data("wikitext", folder)
    write_archive(tmp_path / TASKS["winogrande"].archive, FILES["winogrande"](3))
    assert harness.has_data("winogrande", tmp_path)
