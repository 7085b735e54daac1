"""Every task of the menu on small files of the published form, and what goes wrong with such files."""

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import task_files

from quillgpt.data.download import Download
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.tasks import TASK_GROUPS, TASKS, Task, chosen_tasks, fetch_task
from quillgpt.evaluate.tasks.encode import encode_apart, encode_joined
from quillgpt.evaluate.tasks.hellaswag import cleaned, completion_item, harness_item
from quillgpt.evaluate.tasks.records import Record
from quillgpt.evaluate.tasks.task import subset
from quillgpt.tokenizer import load_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
packed_tasks = pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if task.archive], ids=lambda task: task.name
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_files.write_tasks(tmp_path_factory.mktemp("tasks"))


@every_task
def test_an_entry_says_where_its_data_is_from_and_what_was_published(task: Task) -> None:
    references = (Path(__file__).parents[2] / "docs" / "references.md").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    assert f"**{task.paper}**" in references
    assert f"`{task.name}` | " in page
    assert task.licence in page
    assert f"| {task.items:,} (" in page
    assert task.meaning
    assert task.download.url.startswith("https://")
    assert re.fullmatch(r"[0-9a-f]{64}", task.download.sha256)
    assert task.download.bytes > 1_000_000
    for scores in task.published.values():
        assert set(scores) <= set(task.metrics)
        for value, source in scores.values():
            assert value > 0
            assert source in page
            assert f"{value:.4f}".rstrip("0") in page


@every_task
def test_the_items_are_those_of_the_file(task: Task, folder: Path) -> None:
    items = task.read(folder)
    assert len(items) == 20
    assert len({item.key for item in items}) == 20
    for item in items:
        assert 0 <= item.right < len(item.candidates)
        assert all(candidate.continuation.startswith(" ") for candidate in item.candidates)
    if task.name != "lambada":
        assert len({item.right for item in items}) > 1


def candidates(name: str, folder: Path, place: int) -> list[tuple[str, str, int]]:
    item = TASKS[name].read(folder)[place]
    return [(one.context, one.continuation, one.characters) for one in item.candidates]


def test_lambada_asks_for_the_last_word_after_all_others(folder: Path) -> None:
    context = "He drops two ladders, and nobody asks.\nIn the evening he paints two"
    assert candidates("lambada", folder, 1) == [(context, " ladders", 7)]


def test_piqa_asks_a_question_and_takes_the_label_from_its_own_file(folder: Path) -> None:
    context = "Question: How does one clean two ladders?\nAnswer:"
    washed, burnt = " Wash two ladders with warm water.", " Set two ladders on fire, then wait 1 minutes."
    assert candidates("piqa", folder, 1) == [(context, washed, len(washed) - 1), (context, burnt, len(burnt) - 1)]
    assert [item.right for item in TASKS["piqa"].read(folder)[:3]] == [0, 1, 0]


@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge"])
def test_arc_gives_three_to_five_answers_without_their_letters(name: str, folder: Path) -> None:
    items = TASKS[name].read(folder)
    assert {len(item.candidates) for item in items} == {3, 4, 5}
    first = 0 if name == "arc-easy" else 7
    assert [item.right for item in items] == [(first + number) % 3 for number in range(20)]
    context, answer, _ = candidates(name, folder, 0)[0]
    assert context == f"Question: Which of these {task_files.verb(first)} light number {first}?\nAnswer:"
    assert answer == f" {task_files.thing(first)}"


def test_winogrande_scores_the_rest_of_the_sentence_after_either_noun(folder: Path) -> None:
    before, rest = "The tailor drops two ladders because the ", " of it was very old."
    assert candidates("winogrande", folder, 1) == [
        (f"{before}lining", rest, len(rest) - 1),
        (f"{before}handle", rest, len(rest) - 1),
    ]
    assert [item.right for item in TASKS["winogrande"].read(folder)[:3]] == [0, 1, 0]


def scene(**changed: object) -> Record:
    return Record(where="scenes.jsonl:3", values=task_files.hellaswag(1) | changed)


def test_hellaswag_completion_style_takes_the_text_as_it_is() -> None:
    record = scene(ctx="How to knit [title] Begin. the man", endings=["sits [step]  down", "b", "c", "d"])
    item = completion_item(record)
    assert item.candidates[0].context == "How to knit [title] Begin. the man"
    assert item.candidates[0].continuation == " sits [step]  down"


def test_hellaswag_harness_style_names_the_activity_and_cleans_the_text() -> None:
    texts = {"activity_label": "Knitting", "ctx_a": "How to knit [title] Begin.", "ctx_b": "the MAN"}
    item = harness_item(scene(**texts, endings=["sits [step] down ", "b", "c", "d"]))
    assert item.candidates[0].context == "Knitting: How to knit. Begin. The man"
    assert item.candidates[0].continuation == " sits down"
    assert item.candidates[0].characters == len("sits down")


@pytest.mark.parametrize("text", [" a ", "a [title] b", "a [b] c", "a    b", "[x]a[y z]", "a ] [", "[a\n]", "[[a] b]"])
def test_cleaning_is_that_of_the_harness(text: str) -> None:
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    assert cleaned(text) == utils.preprocess(text)


def test_the_worked_example_of_the_page_is_what_the_code_does() -> None:
    try:
        tokenizer = load_tokenizer("gpt2")
    except DataError as error:
        pytest.skip(str(error))
    page = PAGE.read_text(encoding="utf-8")
    fields = dict(re.findall(r"^    (activity_label|ctx|endings) +(.+)$", page, re.MULTILINE))
    before, after = fields["ctx"].rsplit(" the ", 1)
    endings = [ending for ending in fields["endings"].split(" | ") if ending != "..."]
    record = scene(**fields | {"ctx_a": before, "ctx_b": f"the {after}", "endings": endings, "label": 0})
    rows = dict(re.findall(r"^\| ([\w ]+?) \| (.+) \|$", page, re.MULTILINE))
    lengths = [line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| its length")]
    for style, make in enumerate((completion_item, harness_item)):
        item = make(record)
        assert rows["context"].split(" | ")[style] == f"`{item.candidates[0].context}`"
        for place, candidate in enumerate(item.candidates):
            assert rows[f"ending {place}"].split(" | ")[style] == f"`{candidate.continuation}`"
            tokens = len(encode_apart(tokenizer, candidate.context, candidate.continuation).continuation)
            length = (f"{tokens} tokens", f"{candidate.characters} characters")[style]
            assert lengths[place][style].rstrip(" |") == length


def test_both_styles_choose_the_same_items(folder: Path) -> None:
    styles = [TASKS[name].read(folder) for name in TASK_GROUPS["hellaswag"]]
    assert [item.key for item in subset(styles[0], 7)] == [item.key for item in subset(styles[1], 7)]


def test_a_subset_is_fixed_nested_and_independent_of_the_order(folder: Path) -> None:
    items = TASKS["piqa"].read(folder)
    few, more = subset(items, 5), subset(items, 11)
    assert len(few) == 5
    assert [item for item in more if item in few] == few
    assert {item.key for item in subset(items[::-1], 5)} == {item.key for item in few}
    assert [item.key for item in few] != [item.key for item in items[:5]]
    assert subset(items, 0) == subset(items, 20) == subset(items, 999) == items


@every_task
def test_the_fingerprint_is_of_the_task_and_all_that_is_scored(task: Task, folder: Path) -> None:
    items = task.read(folder)
    fingerprint = task.fingerprint(items)
    assert fingerprint == task.fingerprint(task.read(folder))
    others = [items[:-1], [*items[:3], dataclasses.replace(items[3], right=items[3].right + 1), *items[4:]]]
    for change in ({"context": "other"}, {"continuation": " other"}, {"characters": 99}):
        candidate = dataclasses.replace(items[3].candidates[0], **change)
        reworded = dataclasses.replace(items[3], candidates=(candidate, *items[3].candidates[1:]))
        others.append([*items[:3], reworded, *items[4:]])
    assert len({task.fingerprint(other) for other in [items, *others]}) == 6
    assert len({other.fingerprint(items) for other in TASKS.values()}) == len(TASKS)


def test_words_are_cut_into_tokens_together_or_apart() -> None:
    tokenizer = load_tokenizer("byte")

    def texts(request: object) -> tuple[str, str]:
        return tokenizer.decode(request.context), tokenizer.decode(request.continuation)

    assert texts(encode_apart(tokenizer, "so ", " it")) == ("so ", " it")
    assert texts(encode_joined(tokenizer, "so ", " it")) == ("so", "  it")  # the space goes with the word
    assert encode_joined(tokenizer, "", " it").context == (tokenizer.end_of_text,)
    assert encode_apart(tokenizer, "", " it").context == (tokenizer.end_of_text,)
    assert encode_joined(tokenizer, " ", "it").context == (tokenizer.end_of_text,)
    assert texts(encode_joined(tokenizer, " ", "it"))[1] == " it"


class Merging:
    """A tokenizer for which "ab" is one token, and every other character too."""

    end_of_text = 0

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text.replace("ab", "X")]


def test_a_token_across_the_border_belongs_to_the_context_unless_nothing_were_left() -> None:
    assert encode_joined(Merging(), "a", "bc").continuation == (ord("c"),)
    assert encode_joined(Merging(), "a", "b").continuation == (ord("b"),)


@packed_tasks
def test_the_archive_that_was_downloaded_serves_as_well_as_its_files(task: Task, folder: Path, tmp_path: Path) -> None:
    contents = {path: (folder / path).read_text() for path in task.paths}
    task_files.write_archive(tmp_path / task.archive, contents)
    assert task.read(tmp_path) == task.read(folder)


@packed_tasks
def test_a_damaged_archive_is_one_line(task: Task, folder: Path, tmp_path: Path) -> None:
    contents = {path: (folder / path).read_text() for path in task.paths}
    content = bytearray(task_files.write_archive(tmp_path / task.archive, contents).read_bytes())
    content[60:90] = bytes(30)
    (tmp_path / task.archive).write_bytes(content)
    assert f"{task.archive}/{task.paths[0]}: cannot be read" in refused(task, tmp_path)
    (tmp_path / task.archive).write_bytes(b"<html>")
    assert "cannot be read: File is not a zip file; delete it" in refused(task, tmp_path)
    task_files.write_archive(tmp_path / task.archive, {"other": ""})
    assert f"{task.archive}: the archive holds no {task.paths[0]}" in refused(task, tmp_path)


def refused(task: Task, directory: Path) -> str:
    with pytest.raises(DataError) as found:
        task.read(directory)
    assert "\n" not in str(found.value)
    return str(found.value)


@every_task
def test_a_file_that_is_not_there_says_where_to_get_it(task: Task, tmp_path: Path) -> None:
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
    (
        "hellaswag-harness",
        lambda values: values.update(endings="one"),
        "'endings' is 'one', expected a list of strings",
    ),
    ("hellaswag-harness", lambda values: values.update(endings=["a", 2]), "endings: the field '1' is 2, expected a"),
    ("hellaswag-harness", lambda values: values.update(endings=[]), "'endings' is a list, expected a list of strings"),
    (
        "hellaswag-completion",
        lambda values: values.update(ctx="\ud83d"),
        "'ctx' is '\\ud83d', expected a string of whole",
    ),
    ("lambada", lambda values: values.update(text=3), "'text' is 3, expected a string"),
    ("lambada", lambda values: values.update(text="alone"), "'text' is no passage with a last word"),
    ("lambada", lambda values: values.update(text="ends here "), "'text' is no passage with a last word"),
    ("piqa", lambda values: values.update(sol2=["x"]), "'sol2' is a list, expected a string"),
    ("piqa", lambda values: values.pop("goal"), "no field 'goal', expected a string; it has sol1, sol2"),
    ("arc-easy", lambda values: values.pop("question"), "no field 'question', expected an object"),
    ("arc-easy", lambda values: values["question"].pop("stem"), "question: no field 'stem', expected a string"),
    (
        "arc-easy",
        lambda values: values["question"].update(choices=[]),
        "'choices' is a list, expected a list of objects",
    ),
    ("arc-easy", lambda values: values["question"]["choices"][1].pop("text"), "choices[1]: no field 'text'"),
    ("arc-easy", lambda values: values.update(answerKey="Z"), "'answerKey' is 'Z', expected one of"),
    ("winogrande", lambda values: values.update(sentence="none"), "'sentence' has no blank (_)"),
    ("winogrande", lambda values: values.update(answer="3"), "'answer' is '3', expected one of 1, 2"),
    (
        "winogrande",
        lambda values: values.pop("option2"),
        "no field 'option2', expected a string (did you mean option1?)",
    ),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), FAULTS, ids=[f"{name}: {text[:30]}" for name, _, text in FAULTS]
)
def test_a_fault_names_file_line_and_field(
    name: str, change: Change, message: str, folder: Path, tmp_path: Path
) -> None:
    task = TASKS[name]
    for path in task.paths:
        records = [json.loads(line) for line in (folder / path).read_text().splitlines()]
        if path == task.paths[0]:
            change(records[4])
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(task_files.lines(records))
    assert f"{tmp_path / task.paths[0]}:5" in refused(task, tmp_path)
    assert message in refused(task, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a b"}\n{"text": ', "lambada_test.jsonl:2: not JSON"),
        ('{"text": "a b"}\n[1]\n', "lambada_test.jsonl:2: a list, expected an object with the fields of this task"),
        ('{"text": "a b"}\n{"text": "caf\udce9 b"}\n', "lambada_test.jsonl:2: not JSON"),
        ("\n\n", "holds no items"),
    ],
)
def test_a_line_that_is_no_object_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "lambada_test.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    assert message in refused(TASKS["lambada"], tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0\n1\n", "20 items in .*dev.jsonl, 2 in .*dev-labels.lst"),
        ("0\n" * 19 + "2\n", "dev-labels.lst:20: .* is '2'"),
    ],
)
def test_labels_that_do_not_fit_the_items_are_refused(labels: str, message: str, folder: Path, tmp_path: Path) -> None:
    records, places = TASKS["piqa"].paths
    (tmp_path / records).parent.mkdir()
    (tmp_path / records).write_text((folder / records).read_text())
    (tmp_path / places).write_text(labels)
    assert re.search(message, refused(TASKS["piqa"], tmp_path))


def names(text: str) -> list[tuple[str, int]]:
    return [(task.name, limit) for task, limit in chosen_tasks(text)]


def test_tasks_are_chosen_by_name_with_a_limit_each() -> None:
    assert names("piqa") == [("piqa", 0)]
    assert names("hellaswag:200, piqa") == [("hellaswag-completion", 200), ("hellaswag-harness", 200), ("piqa", 0)]
    assert names("arc-easy:1,arc-challenge:7") == [("arc-easy", 1), ("arc-challenge", 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hellaswg", r"tasks = 'hellaswg' does not exist \(did you mean hellaswag\?\)"),
        ("piqa,", "tasks = '' does not exist"),
        ("piqa:0", "tasks = 'piqa:0' is not possible: expected NAME, or NAME:LIMIT with a limit of 1 or more"),
        ("piqa:", "tasks = 'piqa:' is not possible"),
        ("piqa:-3", "tasks = 'piqa:-3' is not possible"),
        ("piqa:²", "tasks = 'piqa:²' is not possible"),
        ("piqa:" + "9" * 5000, "is not possible"),
        ("piqa:5,piqa", "has piqa twice; name each task once"),
        ("hellaswag,hellaswag-harness", "has hellaswag-harness twice"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        chosen_tasks(text)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 400


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
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
    content = (folder / "lambada_test.jsonl").read_bytes()
    task = served(TASKS["lambada"], address, content)
    directory = fetch_task(task, tmp_path / "data" / "tasks")
    assert task.read(directory) == TASKS["lambada"].read(folder)
    (directory / task.file_name).write_bytes(b"other")
    fetch_task(task, directory)
    assert (directory / task.file_name).read_bytes() == content
    with pytest.raises(DataError, match=r"with SHA-256 .*--data-dir DIRECTORY"):
        fetch_task(served(task, address, b"pinned" * 99_999), tmp_path / "other")
    assert not (tmp_path / "other" / task.file_name).exists()


def test_an_archive_is_fetched_and_read(address: str, folder: Path, tmp_path: Path) -> None:
    task = TASKS["winogrande"]
    packed = task_files.write_archive(folder / task.archive, {path: (folder / path).read_text() for path in task.paths})
    content = packed.read_bytes()
    directory = fetch_task(served(task, address, content), tmp_path)
    packed.unlink()
    assert task.read(directory) == task.read(folder)
