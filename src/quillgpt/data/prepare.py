"""From a source of text to a directory of tokens: `prepare` may be killed at any point and continues when run again.

    data/NAME/  manifest.json (last)  tokenizer.json  train-00000.bin ...  val-00000.bin ...

Run again with the same settings, it reads the text from the start, which is quick, encodes only what no finished shard
contains, and so writes the same bytes as an uninterrupted run. There is one directory, with a name made from the
settings, for each combination of source and tokenizer.
"""

import hashlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data.document import DataSource, SourceStats, TextSource, TokenSource, decide_split
from quillgpt.data.shards import (
    MANIFEST,
    REMEDY,
    SHARD_TOKENS,
    SPLITS,
    TOKENIZER,
    WORK,
    Manifest,
    open_shard,
    read_manifest,
)
from quillgpt.data.sources import open_source, source_class, training_texts
from quillgpt.data.write_shards import PrepareState, chained, read_state, write_shards
from quillgpt.errors import ConfigError, DataError
from quillgpt.progress import Progress, no_progress
from quillgpt.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, train_tokenizer

DATA = Path("data")
TOKENIZER_CHARACTERS = 1 << 29  # more text hardly changes what a tokenizer learns, and takes memory
MIN_TOKENS = 2
MAX_SKIPPED_NAMES = 5


def data_directory(settings: DataConfig, vocab_size: int) -> Path:
    """Return the directory of prepared data: `data`, or if that is "auto", data/ and a name unique to the settings."""
    if settings.data != "auto":
        return Path(settings.data)
    tokenizer = settings.tokenizer
    details = [settings.path, settings.text_field, settings.errors, settings.documents]
    is_default = details == ["", "text", "strict", 0]
    if source_class(settings).has_subsets:
        details.append(settings.subset)
    if "/" in tokenizer or tokenizer.endswith(".json"):
        details.append(load_tokenizer(tokenizer).fingerprint)  # not its path: a run's checkpoints have the same one
        tokenizer = "custom"
    if tokenizer == "bpe":
        tokenizer = f"bpe{vocab_size}"
    name = f"{settings.source}-{tokenizer}"
    if not is_default or len(details) > 4:
        name += "-" + hashlib.sha256(repr(details).encode()).hexdigest()[:8]
    return DATA / name


def prepare_command(settings: DataConfig, vocab_size: int) -> str:
    """Return the command that prepares the data of these settings in `data_directory`."""
    words = ["quill", "prepare", settings.source, "--tokenizer", settings.tokenizer]
    if _is_trained(settings.tokenizer):
        words += ["--vocab-size", str(vocab_size)]
    for name in ("path", "text_field", "subset", "documents", "errors", "data"):
        value = getattr(settings, name)
        if value != getattr(DataConfig, name):
            words += [f"--{'out' if name == 'data' else name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def prepare(
    config: DataConfig,
    *,
    vocab_size: int,
    out: Path,
    shard_tokens: int = SHARD_TOKENS,
    processes: int = 0,
    progress: Progress = no_progress,
) -> Manifest:
    """Make the data directory `out`, continue an interrupted one, or return at once if it is complete.

    vocab_size: of a tokenizer that is trained here; others have their own. processes: encoding processes; 0: one per
    core. progress: receives bytes of text; the total is an estimate. A directory begun with other settings is a
    `ConfigError` that names them; if it has no finished shard, it starts again.
    """
    settings = _settings(config, vocab_size, shard_tokens)
    if (out / MANIFEST).exists() and not (out / WORK).exists():
        return _finished(out, settings)
    _check_directory(out)
    source = open_source(config)  # before the directory exists: an error leaves nothing there
    files.make_directory(out)
    with files.locked(out):
        files.remove_leftovers(out)
        if not (out / MANIFEST).exists():
            state = _begin(out, settings)
            tokenizer = _tokenizer(config, vocab_size, out, state)
            if isinstance(source, TextSource) and state.rule is None:
                state.rule = decide_split(source, name=config.source, limit=config.documents)
                state.save(out)
            stats = write_shards(source, out, state, tokenizer, processes=processes, progress=progress)
            manifest = _manifest(config.source, source, tokenizer, state, stats)
            files.write_json(out / MANIFEST, manifest.to_json())
        files.remove_file(out / WORK)
    return _finished(out, settings)


def _settings(config: DataConfig, vocab_size: int, shard_tokens: int) -> dict[str, Any]:
    """Return what decides the content of the directory: with other values it is other data."""
    settings = asdict(config) | {"shard_tokens": shard_tokens}
    del settings["data"]
    if not source_class(config).has_subsets:
        del settings["subset"]
    if _is_trained(config.tokenizer):
        settings["vocab_size"] = vocab_size
    elif config.tokenizer not in TOKENIZERS:
        settings["tokenizer"] = "custom"  # whatever its path
        settings["tokenizer_fingerprint"] = load_tokenizer(config.tokenizer).fingerprint
    return settings


def _is_trained(tokenizer: str) -> bool:
    return tokenizer in TOKENIZERS and TOKENIZERS[tokenizer].learns


def _check_directory(out: Path) -> None:
    """Refuse a directory that contains other files, so that they are not overwritten or deleted."""
    if not out.is_dir() or (out / WORK).exists():
        return
    if any(path.name != ".lock" and not path.name.startswith(files.TEMPORARY_PREFIX) for path in out.iterdir()):
        raise ConfigError(f"{out} has files in it that `quill prepare` did not make; choose another --out")


def _begin(out: Path, settings: dict[str, Any]) -> PrepareState:
    state = read_state(out)
    if state is not None and state.settings != settings and state.records:
        raise _settings_error(out, state.settings, settings)
    if state is None or state.settings != settings:
        state = PrepareState(settings=settings)
        state.save(out)
    return state


def _tokenizer(config: DataConfig, vocab_size: int, out: Path, state: PrepareState) -> Tokenizer:
    """Return the tokenizer of the directory; the first run trains or loads it and saves it there."""
    if state.tokenizer:
        tokenizer = load_tokenizer(out / TOKENIZER)
        if tokenizer.fingerprint != state.tokenizer:
            raise DataError(f"{out / TOKENIZER} is not the tokenizer that was begun with; {REMEDY}")
        return tokenizer
    if _is_trained(config.tokenizer):
        texts = _first_characters(training_texts(config), TOKENIZER_CHARACTERS)
        tokenizer = train_tokenizer(config.tokenizer, texts, vocab_size)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    files.write_text(out / TOKENIZER, tokenizer.to_json())
    state.tokenizer = tokenizer.fingerprint
    state.save(out)
    return tokenizer


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        yield text[:limit]
        limit -= len(text)


def _manifest(name: str, source: DataSource, tokenizer: Tokenizer, state: PrepareState, stats: SourceStats) -> Manifest:
    """Return the manifest of finished shards; a split that is too small is a `DataError`."""
    manifest = Manifest(
        source=name,
        licence=source.licence,
        settings=state.settings,
        tokenizer={
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
        },
        validation=source.validation if isinstance(source, TokenSource) else str(state.rule),
        text_sha256=chained(state.splits["train"].digest, bytes.fromhex(state.splits["val"].digest)),
        replacements=stats.replacements,
        empty_documents=stats.empty_documents,
        notes=_notes(stats),
        shards={split: state.splits[split].shards for split in SPLITS},
    )
    for split in SPLITS:
        count = manifest.total(split, "tokens")
        if count < MIN_TOKENS:
            got = f"the source {name} gives {count} tokens for the {split} split"
            raise DataError(f"{got}, at least {MIN_TOKENS} are needed; give it more text")
    return manifest


def _notes(stats: SourceStats) -> list[str]:
    notes = list(stats.notes)
    if stats.skipped:
        names = ", ".join(stats.skipped[:MAX_SKIPPED_NAMES]) + (
            ", ..." if len(stats.skipped) > MAX_SKIPPED_NAMES else ""
        )
        were = "file was skipped because it is" if len(stats.skipped) == 1 else "files were skipped because they are"
        notes.append(f"{len(stats.skipped)} {were} not UTF-8: {names}")
    if stats.replacements:
        were = "place that was not UTF-8 was" if stats.replacements == 1 else "places that were not UTF-8 were"
        notes.append(f"{stats.replacements:,} {were} replaced by U+FFFD")
    if stats.empty_documents:
        notes.append(f"{stats.empty_documents:,} documents without any text were left out")
    return notes


def _finished(out: Path, settings: dict[str, Any]) -> Manifest:
    manifest = read_manifest(out)
    if manifest.settings != settings:
        raise _settings_error(out, manifest.settings, settings)
    for record in [record for split in SPLITS for record in manifest.shards[split]]:
        open_shard(out / record.file)
    return manifest


def _settings_error(out: Path, before: dict[str, Any], now: dict[str, Any]) -> ConfigError:
    both = {name: (before.get(name, "unset"), now.get(name, "unset")) for name in {**before, **now}}
    differences = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in both.items() if old != new)
    return ConfigError(f"{out} was made with other settings: {differences}; choose another --out, or delete {out}")
