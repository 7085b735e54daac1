"""The speed of data: batches out of prepared tokens, and tokens out of text in one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from quillgpt.bench.machine import Clock
from quillgpt.bench.windows import Plan, Progress, Window, in_turn
from quillgpt.config import RunConfig
from quillgpt.data.encode import Batch, batches, encode_here
from quillgpt.data.loader import BatchLoader, BatchSchedule
from quillgpt.data.reencode import decoded_pieces
from quillgpt.data.split import SplitPiece
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.distributed import Ranks
from quillgpt.errors import DataError
from quillgpt.hardware import detect
from quillgpt.tokenizer import Tokenizer
from quillgpt.train.open_data import open_data
from quillgpt.train.progress import Screen
from quillgpt.train.resolve import resolve
from quillgpt.train.starting_point import starting_point

BATCHES, TOKENS, BYTES = "batches", "tokens", "bytes"
TEXT_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What was measured of one side. `encoding` is empty where its text cannot be had back, and `why` says so."""

    name: str
    tokenizer: str
    rows: int
    context_length: int
    token_bytes: int
    loading: tuple[Window, ...]
    encoding: tuple[Window, ...]
    why: str


def measure_loading(
    sides: Sequence[tuple[str, RunConfig]],
    plan: Plan,
    screen: Screen,
    *,
    is_random: bool = False,
    progress: Progress = lambda what, done, count: None,
) -> list[Loading]:
    """Measure each side's loader in turn with the others', then its tokenizer."""
    opened = [_Loader(config, screen) for _, config in sides]
    loading = in_turn(opened, plan, progress)
    encoders, reasons = zip(
        *(_encoder(side.train, side.tokenizer, is_random=is_random) for side in opened), strict=True
    )
    able = [encoder for encoder in encoders if encoder is not None]
    encoding = iter(in_turn(able, plan, progress)) if able else iter(())
    return [
        Loading(
            name=name,
            tokenizer=side.tokenizer.name,
            rows=side.rows,
            context_length=config.model.context_length,
            token_bytes=side.token_bytes,
            loading=tuple(windows),
            encoding=() if encoder is None else tuple(next(encoding)),
            why=why,
        )
        for (name, config), side, windows, encoder, why in zip(sides, opened, loading, encoders, reasons, strict=True)
    ]


class _Loader:
    """Batches of a run's own settings, one step after the other."""

    def __init__(self, config: RunConfig, screen: Screen) -> None:
        choices, _ = resolve(config, detect(), Ranks())
        data = open_data(config, starting_point(config), Ranks(), screen)
        self.train, self.tokenizer, self.rows = data.train, data.tokenizer, choices.rows
        self.token_bytes = data.train.shards[0].tokens.dtype.itemsize
        length = config.model.context_length
        schedule = BatchSchedule(context_length=length, rows=choices.rows)
        self._loader = BatchLoader(data.train, context_length=length, schedule=schedule, seed=config.train.seed)
        self._step = 0

    def __call__(self, count: int) -> Window:
        """So many batches."""
        clock, tokens = Clock("cpu"), 0
        with clock("batches"):
            for _ in range(count):
                inputs, _ = self._loader.batch(self._step)
                tokens += inputs.numel()
                self._step += 1
        amounts = {BATCHES: count, TOKENS: tokens, BYTES: tokens * self.token_bytes}
        return Window(repetitions=count, seconds=clock.seconds["batches"], amounts=amounts)


class _Encoder:
    """Encodes the same text again and again, as a preparation in one process does."""

    def __init__(self, text: list[Batch], tokenizer: Tokenizer) -> None:
        self._text, self._tokenizer = text, tokenizer

    def __call__(self, count: int) -> Window:
        """The text so many times."""
        clock, tokens, size = Clock("cpu"), 0, 0
        with clock("encode"):
            for encoded in encode_here(chain.from_iterable(repeat(self._text, count)), self._tokenizer):
                tokens += sum(len(piece.tokens) for piece in encoded)
                size += sum(piece.text_bytes for piece in encoded)
        return Window(repetitions=count, seconds=clock.seconds["encode"], amounts={BYTES: size, TOKENS: tokens})


def _encoder(train: TokenDataset, tokenizer: Tokenizer, *, is_random: bool) -> tuple[_Encoder | None, str]:
    """An encoder of some of the training text, decoded from its tokens; or None and why there is none."""
    if is_random:
        return None, "tokens drawn at random stand for no text"
    try:
        return _Encoder(list(batches(_text_of(train, tokenizer))), tokenizer), ""
    except DataError as error:  # tokens that nobody made from text, or a vocabulary that is not at hand
        return None, str(error)


def _text_of(train: TokenDataset, tokenizer: Tokenizer) -> list[SplitPiece]:
    """The first pieces of a split, of a few megabytes together."""
    found: list[SplitPiece] = []
    for piece in decoded_pieces(train, tokenizer):
        found.append(SplitPiece("train", piece.text.encode(), piece.ends_document, b""))
        if sum(len(one.content) for one in found) >= TEXT_BYTES:
            break
    return found
