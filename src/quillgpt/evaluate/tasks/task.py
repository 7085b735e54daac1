"""What a task is: the records of its files, the items made of them, how they become tokens, and how they are measured.

A record is a JSON object whose fields are checked one by one. An item has candidates, one of them right. A candidate
becomes a `Request` for a likelihood, and a measure says from the likelihoods which candidate the model chooses.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from quillgpt.data.sources.download import Download, fetch
from quillgpt.data.sources.files import LONE_SURROGATE, kind_of, numbered_lines, parse_object, require_regular
from quillgpt.errors import DataError, nearest
from quillgpt.evaluate.likelihood import Likelihood, Request
from quillgpt.tokenizer import Tokenizer

TASK_DATA = Path("data/tasks")
"""the default directory of the tasks' files"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON object. where: FILE:LINE, for errors. A missing or unexpected field is a `DataError`."""

    where: str
    values: dict[str, Any]

    def text(self, field: str) -> str:
        """Return the string in a field."""
        value = self._value(field, "a string", str)
        if LONE_SURROGATE.search(value):
            raise self._error(field, value, "a string of whole characters")
        return value

    def texts(self, field: str) -> list[str]:
        """Return the strings in a field, at least one."""
        values = self._value(field, "a list of strings", list)
        inner = Record(where=f"{self.where}: {field}", values={str(i): value for i, value in enumerate(values)})
        return [inner.text(name) for name in inner.values]

    def index(self, field: str, count: int, *, first: int = 0) -> int:
        """Return the number in a field, which may be a string, as an index from 0; its values start at `first`."""
        known = {str(number): number - first for number in range(first, first + count)}
        value = self._value(field, f"one of {', '.join(known)}", object)
        if str(value) not in known or isinstance(value, bool):
            raise self._error(field, value, f"one of {', '.join(known)}")
        return known[str(value)]

    def records(self, field: str) -> list["Record"]:
        """Return the objects in a field, at least one."""
        values = self._value(field, "a list of objects", list)
        if not all(isinstance(value, dict) for value in values):
            raise self._error(field, values, "a list of objects")
        return [Record(where=f"{self.where}: {field}[{i}]", values=value) for i, value in enumerate(values)]

    def record(self, field: str) -> "Record":
        """Return the object in a field."""
        return Record(where=f"{self.where}: {field}", values=self._value(field, "an object", dict))

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the content, whatever file it was read from."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()

    def _value(self, field: str, expected: str, kind: type) -> Any:
        if field not in self.values:
            hint = f"{nearest(field, self.values)}; it has {', '.join(self.values) or 'none'}"
            raise DataError(f"{self.where}: no field {field!r}, expected {expected}{hint}")
        value = self.values[field]
        if not isinstance(value, kind) or value == []:
            raise self._error(field, value, expected)
        return value

    def _error(self, field: str, value: object, expected: str) -> DataError:
        got = repr(value) if isinstance(value, str | int) and len(repr(value)) <= 40 else kind_of(value)
        return DataError(f"{self.where}: the field {field!r} is {got}, expected {expected}; fix or remove the line")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """The files of a task, by their paths in a directory or in the archive there. archive: its name, "" for none."""

    directory: Path
    archive: str
    url: str

    def records(self, path: str) -> Iterator[Record]:
        """Yield the objects of a file of JSON lines."""
        for where, line in self.lines(path):
            yield Record(where=where, values=parse_object(line, where, "an object with the fields of this task"))

    def lines(self, path: str) -> Iterator[tuple[str, bytes]]:
        """Yield the lines of a file that are not empty, each after its FILE:LINE."""
        with self._opened(path) as (name, file):
            for number, _, line in numbered_lines(file, name):
                yield f"{name}:{number}", line

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[str, BinaryIO]]:
        plain, archive = self.directory / path, self.directory / self.archive
        is_packed = self.archive != "" and archive.exists() and not plain.exists()
        name = f"{archive}/{path}" if is_packed else str(plain)
        try:
            if is_packed:
                with zipfile.ZipFile(archive) as members, members.open(path) as file:
                    yield name, cast(BinaryIO, file)
            else:
                if not plain.exists():
                    remedy = f"leave the directory out to have it fetched, or put it there from {self.url}"
                    raise DataError(f"{plain}: there is no such file; {remedy}")
                require_regular(plain)
                with plain.open("rb") as file:
                    yield name, file
        except KeyError:
            raise DataError(f"{archive}: the archive has no {path}; delete it, it is fetched again") from None
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{name}: cannot be read: {error}; delete it, it is fetched again") from None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A continuation to score after a context. characters: its length as the task counts it."""

    context: str
    continuation: str
    characters: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. key: SHA-256 (hex) of its record. right: the index of the right candidate."""

    key: str
    candidates: tuple[Candidate, ...]
    right: int


def multiple_choice(record: Record, context: str, texts: Sequence[str], right: int) -> Item:
    """Return an item whose candidates are texts after one context and a space."""
    candidates = tuple(Candidate(context=context, continuation=f" {text}", characters=len(text)) for text in texts)
    return Item(key=record.key, candidates=candidates, right=right)


def encode_separately(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Encode context and continuation separately, as build-nanogpt and llm.c do; an empty context is an end of text."""
    tokens = tokenizer.encode(context) or [tokenizer.end_of_text]
    return Request(context=tuple(tokens), continuation=tuple(tokenizer.encode(continuation)))


def encode_joined(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Encode both as one text, as lm-evaluation-harness does: the tokens after those of the context are scored.

    Spaces at the end of the context belong to the continuation, because a token is a word with the space before it. An
    empty context is an end of text. If one token covers the end of the context and all of the continuation, nothing is
    left to score (the harness fails there): then both are encoded separately.
    """
    text = context.rstrip()
    continuation = context[len(text) :] + continuation
    if not text:
        return encode_separately(tokenizer, "", continuation)
    tokens = tokenizer.encode(text)
    rest = tokenizer.encode(text + continuation)[len(tokens) :]
    if not rest:
        return encode_separately(tokenizer, text, continuation)
    return Request(context=tuple(tokens), continuation=tuple(rest))


Encode = Callable[[Tokenizer, str, str], Request]
"""(tokenizer, context, continuation) -> request"""

Measure = Callable[[Item, Sequence[Likelihood]], tuple[float, ...]]
"""(item, likelihoods of its candidates) -> a number for each metric of the task"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An entry of the menu: the origin of its data, how its items are scored, and published scores."""

    name: str
    title: str
    """its name in a report"""
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
    """the number of items in the published file"""
    item: Callable[[Record], Item]
    encode: Encode
    metrics: tuple[str, ...]
    measure: Measure
    published: Mapping[str, Mapping[str, tuple[float, str]]]
    """model -> metric -> score and its source"""
    harness_name: str = ""
    """the same task in lm-evaluation-harness"""
    records: Callable[[DataFiles], Iterator[Record]] | None = None
    """reads the records, with the fields they have on the Hugging Face hub; None: they are the lines of the one file"""

    @property
    def published_scores(self) -> dict[str, dict[str, float]]:
        """Model -> metric -> published score."""
        return {
            model: {metric: score for metric, (score, _) in scores.items()} for model, scores in self.published.items()
        }

    @property
    def file_name(self) -> str:
        """The name of the downloaded file."""
        return self.download.url.rpartition("/")[2]

    @property
    def archive(self) -> str:
        """The name of the downloaded file if it is a zip archive, else ""."""
        return self.file_name if self.file_name.endswith(".zip") else ""

    def fetch(self, directory: Path, *, instead: str = "--data-dir DIRECTORY") -> None:
        """Download the data into the directory, unless it is there with the pinned content.

        instead: the option that an error names as the alternative.
        """
        fetch(self.download, directory / self.file_name, instead=instead)

    def read_records(self, directory: Path) -> Iterator[Record]:
        """Yield the records of the files in the directory."""
        files = DataFiles(directory=directory, archive=self.archive, url=self.download.url)
        return files.records(self.paths[0]) if self.records is None else self.records(files)

    def read(self, directory: Path) -> list[Item]:
        """Return the items in the order of the files; a `DataError` names file, line and field of a fault."""
        items = [self.item(record) for record in self.read_records(directory)]
        if not items:
            raise DataError(f"{directory}: the file of {self.name} has no items; delete it, it is fetched again")
        return items

    def fingerprint(self, items: Iterable[Item]) -> str:
        """Return the SHA-256 (hex) of the task's name and of everything in the items that is scored."""
        digest = hashlib.sha256(self.name.encode())
        for item in items:
            texts = [[candidate.context, candidate.continuation, candidate.characters] for candidate in item.candidates]
            digest.update(json.dumps([item.key, item.right, texts]).encode())
        return digest.hexdigest()


K = TypeVar("K", Item, Record)


def subset(items: Sequence[K], limit: int) -> list[K]:
    """Return the `limit` items (0: all) with the lowest SHA-256, in their order.

    They are the same on every machine and in every order of the file, and a smaller subset is part of a larger one.
    """
    if not 0 < limit < len(items):
        return list(items)
    keys = [item.key for item in items]
    lowest = set(sorted(range(len(items)), key=lambda i: (keys[i], i))[:limit])
    return [item for i, item in enumerate(items) if i in lowest]


PLAIN = ("accuracy",)
NORMALIZED = ("accuracy", "accuracy_norm")


def accuracy(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """Return 1 if the likeliest candidate is the right one, else 0."""
    return (_is_right(item, [likelihood.log_probability for likelihood in likelihoods]),)


def accuracy_by_token(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """Return the same, and the same by log-probability per token, as in build-nanogpt and llm.c."""
    per_token = [likelihood.log_probability / likelihood.tokens for likelihood in likelihoods]
    return (*accuracy(item, likelihoods), _is_right(item, per_token))


def accuracy_by_character(item: Item, likelihoods: Sequence[Likelihood]) -> tuple[float, ...]:
    """Return the same, and the same by log-probability per character, as in lm-evaluation-harness."""
    per_character = [
        likelihood.log_probability / candidate.characters if candidate.characters else float("-inf")
        for candidate, likelihood in zip(item.candidates, likelihoods, strict=True)
    ]
    return (*accuracy(item, likelihoods), _is_right(item, per_character))


def _is_right(item: Item, values: list[float]) -> float:
    return float(values.index(max(values)) == item.right)  # the first of equal values, like argmax
