"""lm-evaluation-harness with our models: its thousands of tasks, through the three questions that it asks of a model.

`HarnessModel` answers them and knows nothing of the library, which harness_library.py speaks to.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quillgpt.errors import ConfigError
from quillgpt.evaluate.harness_library import all_tasks, check_installed, evaluate, has_data, tasks_on
from quillgpt.evaluate.held_out_loss import autocast
from quillgpt.evaluate.likelihood import BATCH_TOKENS, Likelihood, Request, likelihoods
from quillgpt.evaluate.tasks.encode import encode_joined
from quillgpt.model.gpt import GPT
from quillgpt.sample.generate import check_vocabulary, stream
from quillgpt.sample.settings import SamplingSettings
from quillgpt.tokenizer import Tokenizer

NEW_TOKENS = 256  # where a task does not say how many


@dataclass(frozen=True, kw_only=True)
class HarnessModel:
    """A model's answers: the likelihood of a continuation, that of a whole text, and a greedy continuation."""

    model: GPT
    tokenizer: Tokenizer
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_tokens: int = BATCH_TOKENS

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each continuation is after its context."""
        return self._likelihoods([encode_joined(self.tokenizer, *pair) for pair in pairs])

    def texts(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, in nats, from its first token to its last."""
        length = self.model.config.context_length
        windows = [rolling_requests(self.tokenizer.encode(text), self.tokenizer.end_of_text, length) for text in texts]
        rest = iter(self._likelihoods([request for of_text in windows for request in of_text]))
        return [sum(next(rest).log_probability for _ in of_text) for of_text in windows]

    def answers(self, prompts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The likeliest continuation of each prompt, token by token, up to what its settings say."""
        return [self._answer(prompt, settings) for prompt, settings in prompts]

    def _answer(self, prompt: str, settings: Mapping[str, Any]) -> str:
        if settings.get("do_sample") and settings.get("temperature", 1.0) != 0:
            raise ConfigError("harness: the task asks for sampled text; only greedy generation is possible")
        until = settings.get("until") or []
        stop = tuple(string for string in ([until] if isinstance(until, str) else until) if string)
        wanted = SamplingSettings(
            temperature=0, max_new_tokens=int(settings.get("max_gen_toks", NEW_TOKENS)), stop=stop
        )
        length = self.model.config.context_length
        room = max(length - wanted.max_new_tokens, length // 2, 1)  # for the prompt, of which the end is kept
        tokens = (self.tokenizer.encode(prompt) or [self.tokenizer.end_of_text])[-room:]
        with autocast(self.device, self.dtype):
            return "".join(stream(self.model, self.tokenizer, tokens, wanted))

    def _likelihoods(self, requests: list[Request]) -> list[Likelihood]:
        return likelihoods(self.model, requests, device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens)


def rolling_requests(tokens: Sequence[int], end_of_text: int, context_length: int) -> list[Request]:
    """A text of any length as requests that predict each of its tokens once, the first after end of text.

    Windows of context_length follow each other; the last one reaches back, so that its context is full:

        context_length 4, tokens a b c d e f      context |  a b c d      d c d | e f       (| is end of text)
    """
    known = [end_of_text, *tokens]  # known[i] stands before tokens[i]
    requests = []
    for start in range(0, len(tokens), context_length):
        end = min(start + context_length, len(tokens))
        context = known[max(0, end - context_length) : start + 1]
        requests.append(Request(context=tuple(context), continuation=tuple(tokens[start:end])))
    return requests


def run_harness(
    names: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
    *,
    data_dir: Path | None = None,
    limit: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, dict[str, float]]:
    """The harness's scores of the tasks it knows by these names: task -> metric -> value, NAME_stderr for its error.

    A task whose data is in `data_dir` runs on it without a network, all others as the library finds them. `limit`: 0
    for all items; of the data in `data_dir` it is the subset that `score_task` takes. No random state is changed.
    """
    check_installed()
    check_vocabulary(model, tokenizer)
    answers = HarnessModel(model=model, tokenizer=tokenizer, device=device, dtype=dtype, batch_tokens=batch_tokens)
    local = [name for name in names if data_dir is not None and has_data(name, data_dir)]
    others = [name for name in names if name not in local]
    found: dict[str, dict[str, float]] = {}
    if others:
        found |= evaluate(answers, others, all_tasks(others), limit=limit)
    if data_dir is not None and local:
        with tempfile.TemporaryDirectory() as folder:
            found |= evaluate(answers, local, tasks_on(data_dir, local, Path(folder), limit=limit), limit=0)
    return found
