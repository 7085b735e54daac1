"""`quill explain --run`: the judgement of gpt2.py on held-out text is what its words say."""

import dataclasses
import math
import random
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from quillgpt.explain import gpt2
from quillgpt.explain.run import held_out_losses, run
from quillgpt.explain.tiny_run import CONFIG, SENTENCES

TEXT = "".join(random.Random(3).choices(SENTENCES, k=400))


def test_the_held_out_losses_are_those_of_their_formulas() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, vocab_size=11, context_length=5)
    weights = gpt2.initial_weights(config)
    known, held_out = torch.randint(11, (200,)), torch.randint(11, (38,))

    losses = held_out_losses(known, held_out, weights, config)

    targets = held_out[1:36]  # seven windows of five
    counts = Counter(known.tolist())
    by_frequency = [-math.log((counts[token] + 1) / (200 + 11)) for token in targets.tolist()]
    logits = torch.cat([gpt2.gpt(held_out[None, start : start + 5], weights, config)[0] for start in range(0, 35, 5)])
    assert losses == pytest.approx(
        {
            "guessed evenly": math.log(11),
            "guessed by frequency": sum(by_frequency) / 35,
            "this model": cross_entropy(logits, targets).item(),
        },
        rel=1e-6,
    )


def test_a_run_learns_more_than_frequencies_and_continues_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    merged_from = []
    original = gpt2.learn_merges
    monkeypatch.setattr(gpt2, "learn_merges", lambda text, count: merged_from.append(text) or original(text, count))
    torch.manual_seed(0)

    lines = "\n".join(run(TEXT, CONFIG)).splitlines()

    told = [line for line in lines if line.startswith(("guessed", "this model"))]
    rows = {line[:24].strip(): [float(word) for word in line[24:].split()] for line in told}
    nats = {name: figures[0] for name, figures in rows.items()}
    assert nats["this model"] < 0.3 * nats["guessed by frequency"] < 0.3 * nats["guessed evenly"]
    for figures in rows.values():
        assert figures[1] < figures[0] / math.log(2), "a token stands for more than a byte"
    assert set(" ".join(lines[lines.index("the model continues") + 1 :])) <= set(TEXT)
    assert merged_from == [TEXT[: len(TEXT) * 9 // 10]], "held-out text is not looked at"


def test_a_text_of_too_few_tokens_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"a part of it has \d+ tokens, 17 are needed"):
        next(run("ab" * 3000, CONFIG))
