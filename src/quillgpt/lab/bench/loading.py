"""The speed of data: batches from prepared tokens, and tokens from text in one process.

Random tokens can replace a recipe's data that is not prepared (54 GB of OpenWebText for gpt2-124m): a step does the
same arithmetic for any tokens. They are prepared like any text, with one character per token of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from quillgpt import files
from quillgpt.checkpoint.init_from import data_settings, init_source
from quillgpt.config import DataConfig, RunConfig
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import SplitChunk
from quillgpt.data.encode import Batch, batches, encode_here
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.prepare import data_directory, prepare, prepare_command
from quillgpt.data.reencode import decoded_chunks
from quillgpt.data.shards import MANIFEST
from quillgpt.distributed import Ranks
from quillgpt.errors import DataError, require
from quillgpt.lab.bench.measure import Clock, Plan, Spread, Window, measure_in_turns, rates
from quillgpt.progress import Progress, no_progress
from quillgpt.runtime import detect, resolve
from quillgpt.tokenizer import Tokenizer
from quillgpt.training.screen import Screen
from quillgpt.training.setup import open_data

BATCHES, TOKENS, BYTES = "batches", "tokens", "bytes"
TEXT_BYTES = 1 << 22

CHARACTER_BYTES, SURROGATES = 256, range(0xD800, 0xE000)  # a character tokenizer also has 256 bytes and an end of text
RANDOM_TOKENS = 1 << 21
VOCABULARIES = {"gpt2": 50_257, "byte": 257, "character": 257}
"""sizes that do not depend on `vocab_size`; for characters that of an English text, such as Shakespeare's"""
MAX_CHARACTERS = 1_000_000  # of Unicode's 1,112,064
LARGE_SOURCES = {"openwebtext", "fineweb-edu"}  # many gigabytes


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Measurements of one side. The encode rates are None without text; not_encoded_because says why."""

    name: str
    tokenizer: str
    rows: int
    context_length: int
    token_bytes: int
    batches_per_second: Spread
    tokens_per_second: Spread
    bytes_per_second: Spread
    encode_bytes_per_second: Spread | None
    encode_tokens_per_second: Spread | None
    not_encoded_because: str | None
    windows: tuple[Window, ...]
    encode_windows: tuple[Window, ...]


def measure_loading(
    sides: Sequence[tuple[str, RunConfig]],
    plan: Plan,
    screen: Screen,
    *,
    is_random: bool = False,
    progress: Progress = no_progress,
) -> list[Loading]:
    """Measure the loaders in turns, then the tokenizers. is_random: the tokens are random, not those of a text."""
    loaders = [_LoaderSide(config, screen) for _, config in sides]
    loading = measure_in_turns(loaders, plan, progress)
    encoders = [_EncoderSide(side.train, side.tokenizer, is_random=is_random) for side in loaders]
    with_text = [encoder for encoder in encoders if not encoder.reason]
    encoding = iter(measure_in_turns(with_text, plan, progress) if with_text else ())
    found = []
    for (name, config), loader, encoder, windows in zip(sides, loaders, encoders, loading, strict=True):
        encoded = [] if encoder.reason else next(encoding)
        found.append(
            Loading(
                name=name,
                tokenizer=loader.tokenizer.name,
                rows=loader.rows,
                context_length=config.model.context_length,
                token_bytes=loader.token_bytes,
                batches_per_second=rates(windows, BATCHES),
                tokens_per_second=rates(windows, TOKENS),
                bytes_per_second=rates(windows, BYTES),
                encode_bytes_per_second=rates(encoded, BYTES) if encoded else None,
                encode_tokens_per_second=rates(encoded, TOKENS) if encoded else None,
                not_encoded_because=encoder.reason or None,
                windows=tuple(windows),
                encode_windows=tuple(encoded),
            )
        )
    return found


class _LoaderSide:
    """Reads the batches of a run, step by step."""

    def __init__(self, config: RunConfig, screen: Screen) -> None:
        runtime, _ = resolve(config, detect(), Ranks())
        data = open_data(config, init_source(config), Ranks(), screen)
        self.train, self.tokenizer, self.rows = data.train, data.tokenizer, runtime.global_batch_size
        self.token_bytes = data.train.shards[0].tokens.dtype.itemsize
        length = config.model.context_length
        schedule = BatchSchedule(context_length=length, global_batch_size=runtime.global_batch_size)
        self._loader = BatchLoader(data.train, context_length=length, schedule=schedule, seed=config.train.seed)
        self._step = 0

    def __call__(self, count: int) -> Window:
        clock, tokens = Clock("cpu"), 0
        with clock(BATCHES):
            for _ in range(count):
                inputs, _ = self._loader.batch(self._step)
                tokens += inputs.numel()
                self._step += 1
        amounts = {BATCHES: count, TOKENS: tokens, BYTES: tokens * self.token_bytes}
        return Window(repetitions=count, seconds=clock.seconds[BATCHES], amounts=amounts)


class _EncoderSide:
    """Encodes some of the training text, decoded from its tokens, as `quill prepare` in one process does."""

    def __init__(self, train: TokenDataset, tokenizer: Tokenizer, *, is_random: bool) -> None:
        self._tokenizer, self.reason = tokenizer, "random tokens have no text" if is_random else ""
        try:
            self._text = [] if is_random else list(batches(_text_of(train, tokenizer)))
        except DataError as error:  # tokens that were not made from text, or a vocabulary that is not available
            self.reason = str(error)

    def __call__(self, count: int) -> Window:
        clock, tokens, size = Clock("cpu"), 0, 0
        text: list[Batch] = self._text
        with clock("encode"):
            for encoded in encode_here(chain.from_iterable(repeat(text, count)), self._tokenizer):
                tokens += sum(len(piece.tokens) for piece in encoded)
                size += sum(piece.text_bytes for piece in encoded)
        return Window(repetitions=count, seconds=clock.seconds["encode"], amounts={BYTES: size, TOKENS: tokens})


def _text_of(train: TokenDataset, tokenizer: Tokenizer) -> list[SplitChunk]:
    """The first few megabytes of a split."""
    found: list[SplitChunk] = []
    for piece in decoded_chunks(train, tokenizer):
        found.append(SplitChunk("train", piece.text.encode(), piece.ends_document, b""))
        if sum(len(one.content) for one in found) >= TEXT_BYTES:
            break
    return found


def with_random_tokens(config: RunConfig, folder: Path) -> RunConfig:
    """The settings with random tokens, prepared in the folder, from a vocabulary of the recipe's size."""
    vocab_size = VOCABULARIES.get(config.data.tokenizer, config.model.vocab_size)
    require("vocab_size", vocab_size, vocab_size <= MAX_CHARACTERS, f"<= {MAX_CHARACTERS:,} with --random-tokens")
    out = folder / f"random-{vocab_size}"
    if not out.exists():
        text = folder / f"random-{vocab_size}.txt"
        files.write_text(text, random_text(vocab_size, RANDOM_TOKENS))
        settings = DataConfig(source="text", path=str(text), tokenizer="character", data=str(out))
        prepare(settings, vocab_size=vocab_size, out=out, processes=1)
    data = DataConfig(source="text", path="", tokenizer="character", data=str(out))
    train = replace(config.train, init="scratch")  # other weights would bring their tokenizer
    return replace(config, data=data, train=train, model=replace(config.model, vocab_size=vocab_size))


def random_text(vocab_size: int, length: int) -> str:
    """Text whose character vocabulary has this size (at least 257): every character once, then random ones."""
    others = [code for code in range(0x100, 0x100 + vocab_size + len(SURROGATES)) if code not in SURROGATES]
    codes = np.array([*range(0x20, 0x7F), *others[: max(0, vocab_size - CHARACTER_BYTES - 1)]], dtype=np.uint32)
    random = np.random.default_rng(0).choice(codes, size=length)
    return np.concatenate([codes, random]).astype("<u4").tobytes().decode("utf-32-le")


def check_prepared(config: RunConfig, remedy: str) -> None:
    """Refuse data that is not prepared if its preparation would download many gigabytes; `DataError`."""
    settings, vocab_size = data_settings(config, init_source(config)), config.model.vocab_size
    directory = data_directory(settings, vocab_size)
    if settings.source in LARGE_SOURCES and not settings.path and not (directory / MANIFEST).is_file():
        command = f"`{prepare_command(settings, vocab_size)}` downloads and prepares it"
        raise DataError(f"{directory}: no prepared data there; {command}{remedy}")
