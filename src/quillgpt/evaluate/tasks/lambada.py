"""Entry `lambada`: the last word of a passage, in OpenAI's version of the data [Paperno 2016; Radford 2019, 3.3].

The original file is in lower case and split into words, OpenAI's is not; the two give different scores.
"""

from collections.abc import Sequence

from quillgpt.data.sources.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.likelihood import Likelihood
from quillgpt.evaluate.tasks.task import Candidate, Item, Record, Task, encode_joined


def item(record: Record) -> Item:
    """Return all text before the last space as context, the space and the last word as the continuation."""
    context, space, word = record.text("text").rpartition(" ")
    if not context.strip() or not word:
        raise DataError(f"{record.where}: the field 'text' is not a passage with a last word; fix or remove the line")
    return Item(
        key=record.key,
        candidates=(Candidate(context=context, continuation=space + word, characters=len(word)),),
        right=0,
    )


def measure(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """Return 1 if each token of the word is the model's first choice, else 0; and the word's log-probability."""
    return (float(likelihoods[0].is_greedy), likelihoods[0].log_probability)


LAMBADA = Task(
    name="lambada",
    title="LAMBADA",
    meaning="the last word of a passage, which needs all of it; OpenAI's version of the data",
    paper="Paperno 2016",
    licence="CC BY 4.0 (the data), modified MIT (OpenAI's file)",
    download=Download(
        url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        bytes=1_819_752,
    ),
    paths=("lambada_test.jsonl",),
    items=5_153,
    item=item,
    encode=encode_joined,
    metrics=("accuracy", "perplexity"),
    measure=measure,
    published={
        "gpt2": {
            "accuracy": (0.3256, "lm-evaluation-harness issue 2159"),
            "perplexity": (40.0554, "lm-evaluation-harness issue 2159"),
        },
        "gpt2-xl": {"accuracy": (0.5121, "gpt-neo README"), "perplexity": (10.634, "gpt-neo README")},
    },
    harness_name="lambada_openai",
)
