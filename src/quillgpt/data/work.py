"""How far an interrupted `prepare` came: `work.json`, replaced after every shard, gone when the manifest is there."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from quillgpt import files
from quillgpt.data.document import EncodedPiece
from quillgpt.data.manifest import REMEDY, SPLITS, WORK, ShardRecord, read_record
from quillgpt.data.split import SplitPiece, SplitRule
from quillgpt.errors import DataError

AnyPiece = TypeVar("AnyPiece", SplitPiece, EncodedPiece)
START = bytes(32).hex()


@dataclass(kw_only=True)
class SplitProgress:
    """What is in a split's finished shards: their records, the pieces they hold, and the digest of those pieces."""

    shards: list[ShardRecord] = field(default_factory=list)
    pieces: int = 0
    digest: str = START


@dataclass(kw_only=True)
class Work:
    """The state of a preparation: what was decided, and each split's progress."""

    settings: dict[str, Any]
    tokenizer: str = ""
    rule: SplitRule | None = None
    splits: dict[str, SplitProgress] = field(default_factory=lambda: {split: SplitProgress() for split in SPLITS})

    @property
    def has_shards(self) -> bool:
        """Whether stopping now would lose anything worth keeping."""
        return any(progress.shards for progress in self.splits.values())

    def save(self, directory: Path) -> None:
        """Replace the directory's work.json."""
        files.write_json(directory / WORK, dataclasses.asdict(self))


def read_work(directory: Path) -> Work | None:
    """The state that an interrupted preparation left; None where there is none."""
    content = read_record(directory / WORK)
    if content is None:
        return None
    try:
        splits = {split: _split_progress(**content["splits"][split]) for split in SPLITS}
        rule = SplitRule(**content["rule"]) if content["rule"] else None
        return Work(settings=content["settings"], tokenizer=content["tokenizer"], rule=rule, splits=splits)
    except (KeyError, TypeError) as error:
        raise DataError(f"{directory / WORK}: damaged ({error}); {REMEDY}") from None


def _split_progress(shards: list[dict[str, Any]], pieces: int, digest: str) -> SplitProgress:
    return SplitProgress(shards=[ShardRecord(**record) for record in shards], pieces=pieces, digest=digest)


def chained(digest: str, piece_digest: bytes) -> str:
    """The digest of a sequence of pieces with one more at its end."""
    return hashlib.sha256(bytes.fromhex(digest) + piece_digest).hexdigest()


def skip_finished(pieces: Iterable[AnyPiece], work: Work, directory: Path) -> Iterator[AnyPiece]:
    """The pieces that are in no finished shard yet, after checking that the others are still what they were."""
    before = {split: dataclasses.replace(work.splits[split]) for split in SPLITS}  # work grows meanwhile
    seen = {split: SplitProgress() for split in SPLITS}
    for piece in pieces:
        finished, passed = before[piece.split], seen[piece.split]
        if passed.pieces == finished.pieces:
            yield piece
            continue
        passed.pieces += 1
        passed.digest = chained(passed.digest, piece.digest)
        if passed.pieces == finished.pieces and passed.digest != finished.digest:
            raise _changed(directory)
    if any(seen[split].pieces != before[split].pieces for split in SPLITS):
        raise _changed(directory)


def _changed(directory: Path) -> DataError:
    return DataError(f"{directory}: the text is not the one that was begun with; {REMEDY}")
