"""Every task of the menu on small files of the published form, and the errors for faults in such files."""

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from quillgpt.data.sources.download import Download
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.tasks import TASK_GROUPS, TASKS, Task, parse_tasks
from quillgpt.evaluate.tasks.hellaswag import cleaned, completion_item, harness_item
from quillgpt.evaluate.tasks.task import Record, encode_joined, encode_separately, subset
from quillgpt.tokenizer import load_tokenizer
from task_files import hellaswag, lines, thing, verb, write_archive, write_tasks

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")
PACKED = [task for task in TASKS.values() if task.archive]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), count=20)


def test_the_page_has_origin_licence_and_published_scores_of_each_task() -> None:
    references = (DOCS / "references.md").read_text(encoding="utf-8")
    for task in TASKS.values():
        assert f"**{task.paper}**" in references
        for text in (f"`{task.name}` | ", task.licence, f"| {task.items:,} ("):
            assert text in PAGE, task.name
        assert task.meaning
        assert task.download.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{64}", task.download.sha256)
        assert task.download.bytes > 1_000_000
        for scores in task.published.values():
            assert set(scores) <= set(task.metrics)
            for value, source in scores.values():
                assert value > 0
                assert source in PAGE
                assert f"{value:.4f}".rstrip("0") in PAGE


def test_the_items_are_those_of_the_file(folder: Path) -> None:
    for task in TASKS.values():
        items = task.read(folder)
        assert len({item.key for item in items}) == len(items) == 20
        assert all(0 <= item.right < len(item.candidates) for item in items)
        assert all(candidate.continuation.startswith(" ") for item in items for candidate in item.candidates)
        assert task.name == "lambada" or len({item.right for item in items}) > 1


def test_each_task_asks_its_question(folder: Path) -> None:
    def second(name: str) -> list[tuple[str, str, int]]:
        return [(one.context, one.continuation, one.characters) for one in TASKS[name].read(folder)[1].candidates]

    context = "He drops two ladders, and waits.\nIn the evening he paints two"
    assert second("lambada") == [(context, " ladders", 7)]
    context = "Question: How does one clean two ladders?\nAnswer:"
    washed, burnt = " Wash two ladders with warm water.", " Set two ladders on fire, then wait 1 minutes."
    assert second("piqa") == [(context, washed, len(washed) - 1), (context, burnt, len(burnt) - 1)]
    before, rest = "The tailor drops two ladders because the ", " of it was very old."
    assert second("winogrande") == [(f"{before}{noun}", rest, len(rest) - 1) for noun in ("lining", "handle")]
    for name in ("piqa", "winogrande"):
        assert [item.right for item in TASKS[name].read(folder)[:3]] == [0, 1, 0]
    for name, first in (("arc-easy", 0), ("arc-challenge", 7)):
        items = TASKS[name].read(folder)
        assert {len(item.candidates) for item in items} == {3, 4, 5}
        assert [item.right for item in items] == [(first + number) % 3 for number in range(20)]
        candidate = items[0].candidates[0]
        assert candidate.context == f"Question: Which of these {verb(first)} light number {first}?\nAnswer:"
        assert candidate.continuation == f" {thing(first)}"


def scene(**changes: object) -> Record:
    return Record(where="scenes.jsonl:3", values=hellaswag(1) | changes)


def test_hellaswag_has_two_styles(folder: Path) -> None:
    raw = completion_item(scene(ctx="How to knit [title] Begin. the man", endings=["sits [step]  down", "b", "c", "d"]))
    assert raw.candidates[0].context == "How to knit [title] Begin. the man"
    assert raw.candidates[0].continuation == " sits [step]  down"
    texts = {"activity_label": "Knitting", "ctx_a": "How to knit [title] Begin.", "ctx_b": "the MAN"}
    clean = harness_item(scene(**texts, endings=["sits [step] down ", "b", "c", "d"]))
    assert clean.candidates[0].context == "Knitting: How to knit. Begin. The man"
    assert (clean.candidates[0].continuation, clean.candidates[0].characters) == (" sits down", len("sits down"))
    styles = [subset(TASKS[name].read(folder), 7) for name in TASK_GROUPS["hellaswag"]]
    assert [item.key for item in styles[0]] == [item.key for item in styles[1]]


def test_cleaning_equals_that_of_the_harness() -> None:
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    for text in (" a ", "a [title] b", "a [b] c", "a    b", "[x]a[y z]", "a ] [", "[a\n]", "[[a] b]"):
        assert cleaned(text) == utils.preprocess(text), text


def test_the_example_of_the_page_is_what_the_code_does() -> None:
    try:
        tokenizer = load_tokenizer("gpt2")
    except DataError as error:
        pytest.skip(str(error))
    fields = dict(re.findall(r"^    (activity_label|ctx|endings) +(.+)$", PAGE, re.MULTILINE))
    before, after = fields["ctx"].rsplit(" the ", 1)
    endings = [ending for ending in fields["endings"].split(" | ") if ending != "..."]
    record = scene(**fields | {"ctx_a": before, "ctx_b": f"the {after}", "endings": endings, "label": 0})
    rows = dict(re.findall(r"^\| ([\w ]+?) \| (.+) \|$", PAGE, re.MULTILINE))
    lengths = [line.split(" | ")[1:] for line in PAGE.splitlines() if line.startswith("| its length")]
    for style, make in enumerate((completion_item, harness_item)):
        item = make(record)
        assert rows["context"].split(" | ")[style] == f"`{item.candidates[0].context}`"
        for place, candidate in enumerate(item.candidates):
            assert rows[f"ending {place}"].split(" | ")[style] == f"`{candidate.continuation}`"
            tokens = len(encode_separately(tokenizer, candidate.context, candidate.continuation).continuation)
            length = (f"{tokens} tokens", f"{candidate.characters} characters")[style]
            assert lengths[place][style].rstrip(" |") == length


def test_a_subset_is_fixed_nested_and_independent_of_the_order(folder: Path) -> None:
    items = TASKS["piqa"].read(folder)
    few, more = subset(items, 5), subset(items, 11)
    assert len(few) == 5
    assert [item for item in more if item in few] == few
    assert {item.key for item in subset(items[::-1], 5)} == {item.key for item in few}
    assert [item.key for item in few] != [item.key for item in items[:5]]
    assert subset(items, 0) == subset(items, 20) == subset(items, 999) == items


def test_the_fingerprint_covers_the_task_and_all_that_is_scored(folder: Path) -> None:
    for task in TASKS.values():
        items = task.read(folder)
        assert task.fingerprint(items) == task.fingerprint(task.read(folder))
        others = [items[:-1], [*items[:3], dataclasses.replace(items[3], right=items[3].right + 1), *items[4:]]]
        for change in ({"context": "other"}, {"continuation": " other"}, {"characters": 99}):
            candidate = dataclasses.replace(items[3].candidates[0], **change)
            changed = dataclasses.replace(items[3], candidates=(candidate, *items[3].candidates[1:]))
            others.append([*items[:3], changed, *items[4:]])
        assert len({task.fingerprint(other) for other in [items, *others]}) == 6
        assert len({other.fingerprint(items) for other in TASKS.values()}) == len(TASKS)


class Merging:
    """A tokenizer for which "ab" is one token, and every other character too."""

    end_of_text = 0

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text.replace("ab", "X")]


def test_texts_are_encoded_separately_or_joined() -> None:
    byte, merging = load_tokenizer("byte"), Merging()

    def texts(request: object) -> tuple[str, str]:
        return byte.decode(request.context), byte.decode(request.continuation)

    assert texts(encode_separately(byte, "so ", " it")) == ("so ", " it")
    assert texts(encode_joined(byte, "so ", " it")) == ("so", "  it")  # the space belongs to the word
    for request in (encode_joined(byte, "", " it"), encode_separately(byte, "", " it"), encode_joined(byte, " ", "it")):
        assert request.context == (byte.end_of_text,)
        assert byte.decode(request.continuation) == " it"
    assert encode_joined(merging, "a", "bc").continuation == (ord("c"),)  # the token "ab" belongs to the context
    assert encode_joined(merging, "a", "b").continuation == (ord("b"),)  # unless nothing is left to score


def refused(task: Task, directory: Path) -> str:
    with pytest.raises(DataError) as found:
        task.read(directory)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_an_archive_gives_the_same_items_as_its_files(folder: Path, tmp_path: Path) -> None:
    assert len(PACKED) == 4
    for task in PACKED:
        archive, contents = tmp_path / task.archive, {path: (folder / path).read_text() for path in task.paths}
        content = bytearray(write_archive(archive, contents).read_bytes())
        assert task.read(tmp_path) == task.read(folder)
        content[60:90] = bytes(30)
        archive.write_bytes(content)
        assert f"{task.archive}/{task.paths[0]}: cannot be read" in refused(task, tmp_path)
        archive.write_bytes(b"<html>")
        assert "cannot be read: File is not a zip file; delete it" in refused(task, tmp_path)
        write_archive(archive, {"other": ""})
        assert f"{task.archive}: the archive has no {task.paths[0]}" in refused(task, tmp_path)


def test_the_error_of_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    for task in TASKS.values():
        message = refused(task, tmp_path)
        assert str(tmp_path / task.paths[0]) in message
        assert task.download.url in message


Change = Callable[[dict], object]
FAULTS: list[tuple[str, Change, str]] = [
    ("hellaswag-completion", lambda values: values.pop("ctx"), "no field 'ctx', expected a string (did you mean ctx_"),
    ("hellaswag-harness", lambda values: values.pop("activity_label"), "no field 'activity_label', expected a string"),
    ("hellaswag-completion", lambda values: values.update(label=4), "'label' is 4, expected one of 0, 1, 2, 3"),
    ("hellaswag-completion", lambda values: values.update(label=True), "'label' is True, expected one of 0, 1, 2, 3"),
    ("hellaswag-completion", lambda values: values.update(label=None), "'label' is null, expected one of 0, 1, 2, 3"),
    ("hellaswag-harness", lambda values: values.update(endings="x"), "'endings' is 'x', expected a list of strings"),
    ("hellaswag-harness", lambda values: values.update(endings=["a", 2]), "endings: the field '1' is 2, expected a"),
    ("hellaswag-harness", lambda values: values.update(endings=[]), "'endings' is a list, expected a list of strings"),
    ("hellaswag-completion", lambda values: values.update(ctx="\ud83d"), "'ctx' is '\\ud83d', expected a string of wh"),
    ("lambada", lambda values: values.update(text=3), "'text' is 3, expected a string"),
    ("lambada", lambda values: values.update(text="alone"), "'text' is not a passage with a last word"),
    ("lambada", lambda values: values.update(text="ends here "), "'text' is not a passage with a last word"),
    ("piqa", lambda values: values.update(sol2=["x"]), "'sol2' is a list, expected a string"),
    ("piqa", lambda values: values.pop("goal"), "no field 'goal', expected a string; it has sol1, sol2"),
    ("arc-easy", lambda values: values.pop("question"), "no field 'question', expected an object"),
    ("arc-easy", lambda values: values.update(question="x"), "'question' is 'x', expected an object"),
    ("arc-easy", lambda values: values["question"].pop("stem"), "question: no field 'stem', expected a string"),
    ("arc-easy", lambda values: values["question"].update(choices=[]), "'choices' is a list, expected a list of obj"),
    ("arc-easy", lambda values: values["question"].update(choices=[1]), "'choices' is a list, expected a list of obj"),
    ("arc-easy", lambda values: values["question"]["choices"][1].pop("text"), "choices[1]: no field 'text'"),
    ("arc-easy", lambda values: values.update(answerKey="Z"), "'answerKey' is 'Z', expected one of"),
    ("winogrande", lambda values: values.update(sentence="none"), "'sentence' has no blank (_)"),
    ("winogrande", lambda values: values.update(answer="3"), "'answer' is '3', expected one of 1, 2"),
    (
        "winogrande",
        lambda values: values.pop("option2"),
        "no field 'option2', expected a string (did you mean option1?",
    ),
]


def test_the_error_of_a_fault_names_file_line_and_field(folder: Path, tmp_path: Path) -> None:
    wrong = []
    for name, change, message in FAULTS:
        task = TASKS[name]
        for path in task.paths:
            records = [json.loads(line) for line in (folder / path).read_text().splitlines()]
            if path == task.paths[0]:
                change(records[4])
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(lines(records))
        found = refused(task, tmp_path)
        wrong += [found] if f"{tmp_path / task.paths[0]}:5" not in found or message not in found else []
    for content, message in (
        ('{"text": "a b"}\n{"text": ', "lambada_test.jsonl:2: not JSON"),
        ('{"text": "a b"}\n[1]\n', "lambada_test.jsonl:2: a list, expected an object with the fields of this task"),
        ('{"text": "a b"}\n{"text": "caf\udce9 b"}\n', "lambada_test.jsonl:2: not JSON"),
        ("\n\n", "has no items"),
    ):
        (tmp_path / "lambada_test.jsonl").write_bytes(content.encode(errors="surrogateescape"))
        found = refused(TASKS["lambada"], tmp_path)
        wrong += [found] if message not in found else []
    write_tasks(tmp_path, "piqa", count=20)
    for labels, message in (
        ("0\n1\n", "20 items in .*dev.jsonl, 2 in .*dev-labels.lst"),
        ("0\n" * 19 + "2\n", "dev-labels.lst:20: .* is '2'"),
    ):
        (tmp_path / TASKS["piqa"].paths[1]).write_text(labels)
        found = refused(TASKS["piqa"], tmp_path)
        wrong += [found] if not re.search(message, found) else []
    assert wrong == []


def test_tasks_are_parsed_by_name_with_a_limit_each() -> None:
    for text, expected in (
        ("piqa", [("piqa", 0)]),
        ("hellaswag:200, piqa", [("hellaswag-completion", 200), ("hellaswag-harness", 200), ("piqa", 0)]),
        ("arc-easy:1,arc-challenge:7", [("arc-easy", 1), ("arc-challenge", 7)]),
    ):
        assert [(task.name, limit) for task, limit in parse_tasks(text)] == expected
    for text, message in (
        ("hellaswg", r"invalid tasks: 'hellaswg' \(did you mean hellaswag\?\)"),
        ("piqa,", "invalid tasks: ''"),
        ("piqa:0", r"invalid tasks: 'piqa:0' \(must be NAME, or NAME:LIMIT with a limit of 1 or more"),
        ("piqa:", "invalid tasks: 'piqa:'"),
        ("piqa:-3", "invalid tasks: 'piqa:-3'"),
        ("piqa:²", "invalid tasks: 'piqa:²'"),
        ("piqa:" + "9" * 5000, "invalid tasks"),
        ("piqa:5,piqa", "has piqa twice; name each task once"),
        ("hellaswag,hellaswag-harness", "has hellaswag-harness twice"),
    ):
        with pytest.raises(ConfigError, match=message) as found:
            parse_tasks(text)
        assert "\n" not in str(found.value)
        assert len(str(found.value)) < 400


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """A server of the files in the folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def served(task: Task, address: str, content: bytes) -> Task:
    """The task as if that content were the published one."""
    sha256 = hashlib.sha256(content).hexdigest()
    download = Download(url=f"{address}/{task.file_name}", sha256=sha256, bytes=len(content))
    return dataclasses.replace(task, download=download)


def test_a_task_is_fetched_once_and_only_with_the_pinned_content(address: str, folder: Path, tmp_path: Path) -> None:
    content, directory = (folder / "lambada_test.jsonl").read_bytes(), tmp_path / "data" / "tasks"
    task = served(TASKS["lambada"], address, content)
    task.fetch(directory)
    assert task.read(directory) == TASKS["lambada"].read(folder)
    (directory / task.file_name).write_bytes(b"other")
    task.fetch(directory)
    assert (directory / task.file_name).read_bytes() == content
    with pytest.raises(DataError, match=r"with SHA-256 .*--data-dir DIRECTORY"):
        served(task, address, b"pinned" * 99_999).fetch(tmp_path / "other")
    assert not (tmp_path / "other" / task.file_name).exists()
    task = TASKS["winogrande"]  # an archive
    archive = write_archive(folder / task.archive, {path: (folder / path).read_text() for path in task.paths})
    served(task, address, archive.read_bytes()).fetch(directory)
    archive.unlink()
    assert task.read(directory) == task.read(folder)
