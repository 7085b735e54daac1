"""The data of a run: prepared where it is missing, opened, and checked against the model's tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quillgpt.config import RunConfig
from quillgpt.data import load_data_tokenizer
from quillgpt.data.directory import data_directory
from quillgpt.data.held_out import HeldOutWindows
from quillgpt.data.prepare import prepare
from quillgpt.data.text_to_shards import Means
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.distributed import Ranks, first_goes_first
from quillgpt.errors import ConfigError, DataError
from quillgpt.pretrained.source import Source
from quillgpt.tokenizer import Tokenizer, bytes_per_token
from quillgpt.train.progress import Screen
from quillgpt.train.starting_point import data_settings


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training tokens, held-out windows, and the tokenizer that made them."""

    directory: Path
    train: TokenDataset
    held_out: HeldOutWindows
    tokenizer: Tokenizer
    bytes_per_token: np.ndarray


def open_data(config: RunConfig, source: Source | None, ranks: Ranks, screen: Screen) -> Data:
    """Open the run's data; rank 0 first prepares what is missing and says where. `source`: what the run starts from."""
    settings = data_settings(config, source)
    directory = data_directory(settings, config.model.vocab_size)
    with first_goes_first(ranks):
        if ranks.is_first and not (directory / "manifest.json").is_file():
            if settings.data != "auto":
                raise ConfigError(
                    f"{directory}: no prepared data there; `quill prepare ... --out {directory}` makes it"
                )
            screen.say(f"preparing {settings.source} in {directory}/ (once; later runs reuse it)")
            with screen.preparing() as show:
                prepare(settings, vocab_size=config.model.vocab_size, out=directory, means=Means(progress=show))
        train = TokenDataset.open(directory, "train")
    tokenizer = load_data_tokenizer(directory)
    if source is not None and source.tokenizer_fingerprint != tokenizer.fingerprint:
        theirs, ours = _told(source.tokenizer()), _told(tokenizer)
        remedy = "choose other --data, or leave it out to prepare the text for this model"
        raise DataError(f"{directory} was made with {ours}, {source.name} was trained with {theirs}; {remedy}")
    return Data(
        directory=directory,
        train=train,
        held_out=HeldOutWindows(
            TokenDataset.open(directory, "val"), config.model.context_length, evaluation_tokens(config)
        ),
        tokenizer=tokenizer,
        bytes_per_token=bytes_per_token(tokenizer),
    )


def _told(tokenizer: Tokenizer) -> str:
    return f"the tokenizer {tokenizer.name} of {tokenizer.vocab_size:,} tokens ({tokenizer.fingerprint[:12]})"


def evaluation_tokens(config: RunConfig) -> int:
    """Most held-out tokens of an evaluation; nanoGPT's unit of batches is turned into tokens."""
    train = config.train
    if train.eval_iters:
        return train.eval_iters * max(1, train.batch_size) * config.model.context_length
    return train.eval_tokens
