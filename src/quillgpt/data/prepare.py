"""From a source of text to a directory of tokens: `prepare` may be killed at any point and continues when run again.

    data/NAME/  manifest.json (last)  tokenizer.json  train-00000.bin ...  val-00000.bin ...

While it works, `work.json` says which shards are finished. Run again with the same settings, it reads the text from the
start, which is quick, encodes only what no finished shard holds, and so writes the same bytes as an uninterrupted run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data.document import Tally, TextSource, TokenSource
from quillgpt.data.manifest import MANIFEST, SPLITS, TOKENIZER, WORK, Manifest, read_manifest
from quillgpt.data.shard import REMEDY, SHARD_TOKENS, open_shard
from quillgpt.data.sources import open_source, training_texts
from quillgpt.data.split import decide_split
from quillgpt.data.text_to_shards import Means, write_shards
from quillgpt.data.work import Work, chained, read_work
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, train_tokenizer

TOKENIZER_CHARACTERS = 1 << 29  # more text hardly changes what a tokenizer learns, and takes memory
MINIMUM_TOKENS = 2
SKIPPED_NAMED = 5


def prepare(
    config: DataConfig,
    *,
    vocab_size: int,
    out: Path,
    shard_tokens: int = SHARD_TOKENS,
    means: Means = Means(),  # noqa: B008
) -> Manifest:
    """Make the data directory `out`, continue one that was interrupted, or return at once when it is finished.

    vocab_size is that of a tokenizer to be trained here; the others bring their own. Other settings than those the
    directory was begun with are a `ConfigError` that names them; where no shard is finished yet, it starts again.
    """
    settings = _settings(config, vocab_size, shard_tokens)
    if (out / MANIFEST).exists() and not (out / WORK).exists():
        return _finished(out, settings)
    _refuse_foreign(out)
    source = open_source(config)  # one that is not there leaves no directory behind
    files.make_directory(out)
    with files.locked(out):
        files.remove_leftovers(out)
        if not (out / MANIFEST).exists():
            _build(source, config, vocab_size, out, settings, shard_tokens, means)
        files.remove_file(out / WORK)
    return _finished(out, settings)


def _build(
    source: TextSource | TokenSource,
    config: DataConfig,
    vocab_size: int,
    out: Path,
    settings: dict[str, Any],
    shard_tokens: int,
    means: Means,
) -> None:
    work = _begin(out, settings)
    tokenizer = _tokenizer(config, vocab_size, out, work)
    held_out = "the val.bin of the folder"
    if isinstance(source, TextSource):
        if work.rule is None:
            work.rule = decide_split(source, name=config.source, limit=config.documents)
            work.save(out)
        held_out = str(work.rule)
    tally = write_shards(source, out, work, tokenizer, limit=config.documents, shard_tokens=shard_tokens, means=means)
    manifest = Manifest(
        source=config.source,
        licence=source.licence,
        settings=settings,
        tokenizer={
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
        },
        held_out=held_out,
        text_sha256=chained(work.splits["train"].digest, bytes.fromhex(work.splits["val"].digest)),
        replacements=tally.replacements,
        empty_documents=tally.empty_documents,
        notes=_notes(tally),
        shards={split: work.splits[split].shards for split in SPLITS},
    )
    for split in SPLITS:
        count = manifest.total(split, "tokens")
        if count < MINIMUM_TOKENS:
            got = f"the source {config.source} gives {count} tokens for the {split} split"
            raise DataError(f"{got}, at least {MINIMUM_TOKENS} are needed; give it more text")
    files.write_json(out / MANIFEST, manifest.to_json())


def _notes(tally: Tally) -> list[str]:
    notes = list(tally.notes)
    if tally.skipped:
        named = ", ".join(tally.skipped[:SKIPPED_NAMED]) + (", ..." if len(tally.skipped) > SKIPPED_NAMED else "")
        were = "file was skipped because it is" if len(tally.skipped) == 1 else "files were skipped because they are"
        notes.append(f"{len(tally.skipped)} {were} not UTF-8: {named}")
    if tally.replacements:
        were = "place that was not UTF-8 was" if tally.replacements == 1 else "places that were not UTF-8 were"
        notes.append(f"{tally.replacements:,} {were} replaced by U+FFFD")
    if tally.empty_documents:
        notes.append(f"{tally.empty_documents:,} documents without any text were left out")
    return notes


def _settings(config: DataConfig, vocab_size: int, shard_tokens: int) -> dict[str, Any]:
    """What decides the content of the directory: other values there mean other data."""
    settings = asdict(config) | {"shard_tokens": shard_tokens}
    del settings["data"]
    if config.source != "fineweb-edu":
        del settings["subset"]
    if _learns(config):
        settings["vocab_size"] = vocab_size
    elif config.tokenizer not in TOKENIZERS:
        settings["tokenizer"] = "custom"  # wherever it lies
        settings["tokenizer_fingerprint"] = load_tokenizer(config.tokenizer).fingerprint
    return settings


def _learns(config: DataConfig) -> bool:
    return config.tokenizer in TOKENIZERS and TOKENIZERS[config.tokenizer].learns


def _refuse_foreign(out: Path) -> None:
    """Never write into, nor tidy up, a directory with somebody else's files."""
    if not out.is_dir() or (out / WORK).exists():
        return
    others = [path.name for path in out.iterdir() if path.name != ".lock"]
    if [name for name in others if not name.startswith(files.TEMPORARY_PREFIX)]:
        raise ConfigError(f"{out} has files in it that `quill prepare` did not make; choose another --out")


def _begin(out: Path, settings: dict[str, Any]) -> Work:
    work = read_work(out)
    if work is not None and work.settings != settings and work.has_shards:
        raise _other_settings(out, work.settings, settings)
    if work is None or work.settings != settings:
        work = Work(settings=settings)
        work.save(out)
    return work


def _finished(out: Path, settings: dict[str, Any]) -> Manifest:
    manifest = read_manifest(out)
    if manifest.settings != settings:
        raise _other_settings(out, manifest.settings, settings)
    for record in [record for split in SPLITS for record in manifest.shards[split]]:
        open_shard(out / record.file)
    return manifest


def _other_settings(out: Path, found: dict[str, Any], asked: dict[str, Any]) -> ConfigError:
    both = {name: (found.get(name, "unset"), asked.get(name, "unset")) for name in {**found, **asked}}
    differences = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in both.items() if old != new)
    return ConfigError(f"{out} was made with other settings: {differences}; choose another --out, or delete {out}")


def _tokenizer(config: DataConfig, vocab_size: int, out: Path, work: Work) -> Tokenizer:
    """The tokenizer that lies in the directory, put there at the first run."""
    if work.tokenizer:
        tokenizer = load_tokenizer(out / TOKENIZER)
        if tokenizer.fingerprint != work.tokenizer:
            raise DataError(f"{out / TOKENIZER} is not the tokenizer that was begun with; {REMEDY}")
        return tokenizer
    if _learns(config):
        texts = _first_characters(training_texts(config), TOKENIZER_CHARACTERS)
        tokenizer = train_tokenizer(config.tokenizer, texts, vocab_size)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    files.write_text(out / TOKENIZER, tokenizer.to_json())
    work.tokenizer = tokenizer.fingerprint
    work.save(out)
    return tokenizer


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        yield text[:limit]
        limit -= len(text)
