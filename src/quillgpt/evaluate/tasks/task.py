"""What an entry of the task menu says, and what an item is: candidates, and which one is right."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from quillgpt.data.download import Download
from quillgpt.errors import DataError
from quillgpt.evaluate.likelihood import Likelihood, Request
from quillgpt.evaluate.tasks.records import DataFiles, Record
from quillgpt.tokenizer import Tokenizer

TASK_DATA = Path("data/tasks")
"""where the files of the tasks are kept unless --data-dir says otherwise"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A text to score after another; `characters` is its length as the task counts it."""

    context: str
    continuation: str
    characters: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question: `key` is the SHA-256 of its record, `right` the index of the right candidate."""

    key: str
    candidates: tuple[Candidate, ...]
    right: int


Encode = Callable[[Tokenizer, str, str], Request]
"""the request for a continuation after a context"""

Measure = Callable[[Item, Sequence[Likelihood]], tuple[float, ...]]
"""a number for each metric of the task"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An entry of the menu: where its data is from, how an item is put to a model, and what was published."""

    name: str
    meaning: str
    """one line for help texts"""
    paper: str
    """key in docs/references.md"""
    licence: str
    download: Download
    """one file, or the zip archive of several"""
    paths: tuple[str, ...]
    """its files, in the directory or in the archive"""
    items: int
    """how many the published file holds"""
    records: Callable[[DataFiles], Iterator[Record]]
    """the records, with the fields they have on the Hugging Face hub"""
    item: Callable[[Record], Item]
    encode: Encode
    measure: Measure
    metrics: tuple[str, ...]
    published: Mapping[str, Mapping[str, tuple[float, str]]]
    """model -> metric -> score and its source"""
    harness_name: str = ""
    """the same task in lm-evaluation-harness"""

    def read(self, directory: Path) -> list[Item]:
        """The items of the files in the directory, in their order; a fault is a `DataError` with file, line, field."""
        items = [self.item(record) for record in self.read_records(directory)]
        if not items:
            raise DataError(f"{directory}: the file of {self.name} holds no items; delete it, it is fetched again")
        return items

    def read_records(self, directory: Path) -> Iterator[Record]:
        """The records of the files in the directory."""
        return self.records(DataFiles(directory=directory, archive=self.archive, url=self.download.url))

    @property
    def archive(self) -> str:
        """The name of the zip archive that the download is, "" where it is the file itself."""
        name = self.file_name
        return name if name.endswith(".zip") else ""

    @property
    def file_name(self) -> str:
        """The name of the downloaded file."""
        return self.download.url.rpartition("/")[2]

    def fingerprint(self, items: Iterable[Item]) -> str:
        """SHA-256 (hex) of the task's name and everything that is scored: of other data it is another one."""
        digest = hashlib.sha256(self.name.encode())
        for item in items:
            texts = [[candidate.context, candidate.continuation, candidate.characters] for candidate in item.candidates]
            digest.update(json.dumps([item.key, item.right, texts]).encode())
        return digest.hexdigest()


class Keyed(Protocol):
    """What a subset can be taken of."""

    @property
    def key(self) -> str:
        """SHA-256 of its content."""
        ...


K = TypeVar("K", bound=Keyed)


def subset(items: Sequence[K], limit: int) -> list[K]:
    """`limit` of the items (0: all) in their order: those whose SHA-256 is lowest.

    So it is the same items on every machine and in every order of the file, and a smaller subset is part of a larger.
    """
    if not 0 < limit < len(items):
        return list(items)
    keys = [item.key for item in items]
    chosen = set(sorted(range(len(items)), key=lambda place: (keys[place], place))[:limit])
    return [item for place, item in enumerate(items) if place in chosen]
