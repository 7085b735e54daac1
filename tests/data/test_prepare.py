"""`prepare` writes the same bytes however often it is killed, and splits documents as the rules say."""

import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_corpora import END, byte_config, corpus, digests, documents, read_split, read_tokens

from quillgpt import files
from quillgpt.config import DataConfig, meanings
from quillgpt.data import document, encode, write_shards
from quillgpt.data import prepare as prepare_module
from quillgpt.data.dataset import TokenDataset, load_data_tokenizer
from quillgpt.data.prepare import data_directory, prepare, prepare_command
from quillgpt.data.shards import MANIFEST, WORK, write_nanogpt_files
from quillgpt.data.sources import SOURCES, open_source, training_texts
from quillgpt.data.sources.files import FileSource, find_files
from quillgpt.errors import ConfigError, DataError, DiskError, LockedError, OutOfMemory
from quillgpt.tokenizer import load_tokenizer, train_tokenizer

SMALL = {"vocab_size": 0, "shard_tokens": 3000, "processes": 1}


def small_corpus(folder: Path, **settings) -> DataConfig:
    return corpus(folder, documents(120), **settings)


def test_documents_are_validation_by_the_hash_of_their_bytes_so_duplicates_stay_together(tmp_path: Path) -> None:
    prepare(corpus(tmp_path, documents() * 2), vocab_size=0, out=tmp_path / "data", shard_tokens=2000)
    contents = [text.encode() for text in documents() * 2]
    validation = [content for content in contents if int(hashlib.sha256(content).hexdigest()[:16], 16) / 2**64 < 0.05]
    assert read_split(tmp_path / "data", "val") == validation
    assert read_split(tmp_path / "data", "train") == [content for content in contents if content not in validation]


def test_documents_that_a_hash_cannot_split_are_cut_at_nine_tenths_of_their_characters(tmp_path: Path) -> None:
    """Too few of them, or all equal."""
    for number, texts in enumerate([documents(1), documents(2), documents(99), ["the same text"] * 200]):
        out = tmp_path / str(number)
        prepare(corpus(tmp_path / "in", texts), vocab_size=0, out=out)
        text = "".join(texts)
        cut = len(text) * 9 // 10
        assert b"".join(read_split(out, "train")).decode() == text[:cut], len(texts)
        assert b"".join(read_split(out, "val")).decode() == text[cut:], len(texts)


def test_a_tokenizer_is_trained_on_exactly_the_training_split(tmp_path: Path) -> None:
    for count in (40, 300):
        config, out = corpus(tmp_path / "in", documents(count)), tmp_path / str(count)
        prepare(config, vocab_size=0, out=out)
        assert [text.encode() for text in training_texts(config)] == read_split(out, "train")
    for name in ("bpe", "character"):
        config = corpus(tmp_path / "in", ["".join(documents(90)) + "ÿÿÿÿ" * 10], tokenizer=name)
        prepare(config, vocab_size=280, out=tmp_path / name)
        assert "ÿ" not in "".join(training_texts(config))
        expected = train_tokenizer(name, training_texts(config), 280)
        assert load_data_tokenizer(tmp_path / name).fingerprint == expected.fingerprint


def test_the_first_documents_are_taken_and_empty_ones_counted_and_left_out(tmp_path: Path) -> None:
    config = corpus(tmp_path, ["", *documents(), ""], documents=121)
    assert prepare(config, vocab_size=0, out=tmp_path / "data").empty_documents == 1
    found = read_split(tmp_path / "data", "train") + read_split(tmp_path / "data", "val")
    assert sorted(found) == sorted(text.encode() for text in documents(120))


def test_a_long_document_cut_into_chunks_has_the_tokens_of_the_uncut_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"He said: 'it's {i}'  \n\n\tnaïve—{'x' * (i % 40)}" for i in range(400))
    monkeypatch.setattr(document, "CHUNK_CHARACTERS", 500)
    monkeypatch.setattr(document, "CUT_SEARCH_CHARACTERS", 300)
    for name in ("bpe", "byte", "character"):
        out = tmp_path / name
        prepare(corpus(tmp_path / "in", [text], tokenizer=name), vocab_size=300, out=out, shard_tokens=3000)
        tokenizer = load_data_tokenizer(out)
        assert len(TokenDataset.open(out, "train").shards) > 1
        expected = [*tokenizer.encode(text[: len(text) * 9 // 10]), tokenizer.end_of_text]
        assert read_tokens(out, "train") == expected, name


def test_where_a_document_is_cut_does_not_depend_on_how_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(document, "CUT_SEARCH_CHARACTERS", 50)
    text = "some words, " * 50 + "9" * 250 + "\nand more words " * 20
    for size in (1, 7, 4096):
        chunks = list(document.chunked(text[start : start + size] for start in range(0, len(text), size)))
        assert chunks == list(document.chunked([text])), size
        assert "".join(chunk.text for chunk in chunks) == text
        assert [chunk.ends_document for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


class Failpoint:
    """Counts the file operations of `files.py` and lets one of them fail; none of them waits for the disk."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, fail: Callable[[], None]) -> None:
        self.count = 0
        self.at, self.fail = at, fail
        real_write, real_open = files.HashedFile.write, Path.open
        patch.setattr(files.HashedFile, "write", lambda file, content: self.write(real_write, file, content))
        patch.setattr(Path, "open", lambda path, mode="r", **rest: self.open(real_open, path, mode, rest))
        patch.setattr(os, "fsync", lambda descriptor: self.operation())
        for owner, name in [(os, "replace"), (Path, "unlink"), (Path, "mkdir")]:
            patch.setattr(owner, name, self.counted(getattr(owner, name)))

    def operation(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.fail()

    def counted(self, real: Callable) -> Callable:
        def call(*arguments, **options):
            self.operation()
            return real(*arguments, **options)

        return call

    def write(self, real: Callable, file: files.HashedFile, content: bytes) -> None:
        """A write that fails has written half of its content."""
        if self.count + 1 == self.at:
            file._file.write(content[: len(content) // 2])
            file._file.flush()
        self.operation()
        real(file, content)

    def open(self, real: Callable, path: Path, mode: str, rest: dict):
        if mode != "rb" and set(mode) & set("wax"):
            self.operation()
        return real(path, mode, **rest)


def is_killed_at(operation: int, config: DataConfig, out: Path) -> bool:
    """Prepare in a fork that is killed at that file operation; False if it finished before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Failpoint(pytest.MonkeyPatch(), operation, lambda: os._exit(9))
            prepare(config, out=out, **SMALL)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_disk_full_at(operation: int, config: DataConfig, out: Path) -> bool:
    """Prepare with a disk that is full at that file operation; False if it finished before."""
    with pytest.MonkeyPatch().context() as patch:
        Failpoint(patch, operation, full_disk)
        try:
            prepare(config, out=out, **SMALL)
        except DiskError:
            assert not list(out.glob(f"{files.TEMPORARY_PREFIX}*")), operation
            return True
    return False


@pytest.mark.parametrize("is_interrupted_at", [is_killed_at, is_disk_full_at])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_interrupted_at_any_file_operation_and_run_again_it_writes_the_same_bytes(
    is_interrupted_at: Callable[[int, DataConfig, Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_corpus(tmp_path)
    prepare(config, out=tmp_path / "straight", **SMALL)
    expected = digests(tmp_path / "straight")
    assert len(expected) >= 6  # several shards: there is something to continue with
    assert WORK not in expected
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    operation, is_interrupted = 0, True
    while is_interrupted:
        operation += 1
        out = tmp_path / str(operation)
        is_interrupted = is_interrupted_at(operation, config, out)
        prepare(config, out=out, **SMALL)
        assert digests(out) == expected, f"interrupted at operation {operation}"
        shutil.rmtree(out)
    assert operation > 50


def stop_after(shards: int, config: DataConfig, out: Path) -> None:
    """Prepare until that many shards are written."""
    real, written = write_shards.write_shard, []

    def write_shard(*arguments, **options):
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(arguments)
        return real(*arguments, **options)

    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(write_shards, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, out=out, **SMALL)


def test_a_continued_run_encodes_only_what_no_shard_contains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = small_corpus(tmp_path), tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_notes", lambda stats: pytest.fail("stopped after the last shard"))
        with pytest.raises(pytest.fail.Exception):
            prepare(config, out=out, **SMALL)
    assert not (out / MANIFEST).exists()
    monkeypatch.setattr(encode, "encode_chunk", lambda *arguments: pytest.fail("encoded again"))
    assert prepare(config, out=out, **SMALL).total("train", "documents") > 100


def test_text_that_changed_between_two_runs_is_noticed(tmp_path: Path) -> None:
    for name, texts in {"changed": documents(120), "shorter": documents(20)}.items():
        stop_after(2, small_corpus(tmp_path), tmp_path / name)
        texts[3] = "another text"
        with pytest.raises(DataError, match="the text is not the one that was begun with"):
            prepare(corpus(tmp_path, texts), out=tmp_path / name, **SMALL)


def test_other_settings_are_refused_with_the_difference_unless_there_is_no_shard_yet(tmp_path: Path) -> None:
    config, other = small_corpus(tmp_path), small_corpus(tmp_path, tokenizer="character", documents=110)
    prepare(config, out=tmp_path / "finished", **SMALL)
    stop_after(1, config, tmp_path / "interrupted")
    for name in ("finished", "interrupted"):
        with pytest.raises(ConfigError, match="tokenizer was 'byte', now 'character'; documents was 0, now 110"):
            prepare(other, out=tmp_path / name, **SMALL)
    stop_after(0, config, tmp_path / "begun")
    assert (tmp_path / "begun" / WORK).exists()
    assert prepare(other, out=tmp_path / "begun", **SMALL).tokenizer["name"] == "character"


def test_a_finished_directory_returns_at_once_even_without_its_source(tmp_path: Path) -> None:
    manifest = prepare(corpus(tmp_path, data=str(tmp_path / "data")), vocab_size=0, out=tmp_path / "data")
    config = corpus(tmp_path, data="auto")  # the directory is not a setting of the data
    Path(config.path).unlink()
    assert prepare(config, vocab_size=0, out=tmp_path / "data") == manifest


def test_a_directory_with_other_files_or_in_use_is_left_alone(tmp_path: Path) -> None:
    for name in ("mine", "busy"):
        (tmp_path / name).mkdir()
    for name in (".tmp-notes", "thesis.tex"):
        (tmp_path / "mine" / name).write_text("keep")
    with pytest.raises(ConfigError, match="files in it that `quill prepare` did not make"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 2
    with files.locked(tmp_path / "busy"), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "busy")


def test_a_disk_too_small_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskError, match=r"needs about 0 MB, 0 MB are free there; .*--documents"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.bin"))


def test_the_estimate_of_size_is_near_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "SAMPLE_BYTES", 4000)
    config, tokenizer = corpus(tmp_path), load_tokenizer("byte")
    text_bytes, file_bytes = write_shards.estimate(open_source(config), tokenizer, limit=0)
    manifest = prepare(config, vocab_size=0, out=tmp_path / "data")
    assert file_bytes == pytest.approx(sum(manifest.total(s, "file_bytes") for s in ("train", "val")), rel=0.4)
    limited, _ = write_shards.estimate(open_source(config), tokenizer, limit=150)
    assert limited == pytest.approx(text_bytes / 2, rel=0.3)


def test_progress_counts_every_byte_also_those_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 1000)
    config, size = small_corpus(tmp_path), sum(len(text.encode()) for text in documents(120))
    stop_after(1, config, tmp_path / "data1")
    for out in (tmp_path / "data0", tmp_path / "data1"):
        calls: list[tuple[str, int, int]] = []
        prepare(config, out=out, progress=lambda *call, calls=calls: calls.append(call), **SMALL)
        descriptions, done, totals = zip(*calls, strict=True)
        assert set(descriptions) == {"encoding bytes of text"}
        assert list(done) == sorted(done)
        assert len(done) > 3
        assert (done[0] > 0, done[-1]) == (out.name == "data1", size)
        assert all(total >= count for total, count in zip(totals, done, strict=True))


def test_nanogpt_files_are_the_ids_of_all_documents_and_nothing_else(tmp_path: Path) -> None:
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", shard_tokens=2000)
    write_nanogpt_files(tmp_path / "data")
    for split in ("train", "val"):
        expected = [token for text in read_split(tmp_path / "data", split) for token in [*text, END]]
        assert np.fromfile(tmp_path / "data" / f"{split}.bin", dtype="<u2").tolist() == expected
    path = tmp_path / "data" / MANIFEST
    path.write_text(path.read_text().replace('"vocab_size": 257', '"vocab_size": 70000'))
    with pytest.raises(ConfigError, match="holds ids below 65,536"):
        write_nanogpt_files(tmp_path / "data")


def test_memory_does_not_grow_with_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single lines of 1 and 4 MB, with every buffer a sixteenth of its size; the text in memory would add 3 MB."""
    for name in ("data.document.CHUNK_CHARACTERS", "data.sources.files.BLOCK_BYTES"):
        monkeypatch.setattr(f"quillgpt.{name}", 1 << 16)
    monkeypatch.setattr(encode, "BATCH_BYTES", 1 << 15)
    monkeypatch.setattr(write_shards, "SAMPLE_BYTES", 1 << 16)
    peaks = []
    for megabytes in (1, 1, 4):  # the first run also loads modules
        path = tmp_path / "text.txt"
        path.write_bytes(b"no line ends here " * (megabytes * 1_000_000 // 18))
        tracemalloc.start()
        prepare(byte_config("text", path), vocab_size=0, out=tmp_path / f"{len(peaks)}", shard_tokens=1 << 16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 500_000


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 1000)
    for processes in (1, 3):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / str(processes), shard_tokens=2000, processes=processes)
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


def test_an_encoding_process_answers_or_reports_an_error_and_imports_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text(load_tokenizer("byte").to_json())
    request = io.BytesIO()
    encode.send(request, bytes([1, 0]), b"ab", b"c")
    command = [sys.executable, "-X", "importtime", "-m", "quillgpt.data.encode", str(tmp_path / "tokenizer.json")]
    done = subprocess.run(command, input=request.getvalue(), capture_output=True)
    tokens = [np.array(ids, dtype="<u2").tobytes() for ids in ([97, 98, END], [99])]
    assert encode.receive(io.BytesIO(done.stdout)) == [encode.OK, *tokens]
    assert b"quillgpt.data.shards" in done.stderr
    assert b"torch" not in done.stderr

    broken = SimpleNamespace(encode_array=lambda text: np.array([70_000]), end_of_text=1, vocab_size=300)
    answer = io.BytesIO()
    monkeypatch.setattr(encode, "load_tokenizer", lambda path: broken)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(request.getvalue())))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=answer))
    encode.main()
    error = b"token 70000 is outside the vocabulary of 300 tokens; use the tokenizer it came from"
    assert encode.receive(io.BytesIO(answer.getvalue())) == [error]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_encoding_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(load_tokenizer("byte").to_json())
    script = (
        "import sys, time; from pathlib import Path; from quillgpt.data.encode import Worker;"
        "workers = [Worker(Path(sys.argv[1]), 257) for _ in range(2)];"
        "print(*(worker._process.pid for worker in workers), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tokenizer.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = [int(process) for process in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def still_waiting(number: int, frame: object) -> None:
    raise AssertionError("still waiting for an encoding process")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
def test_an_encoding_process_that_dies_or_ctrl_c_ends_the_preparation_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong was to wait forever, which an alarm ends."""
    monkeypatch.setattr(encode, "BATCH_BYTES", 200)
    started: list[encode.Worker] = []

    class Dying(encode.Worker):
        signal = 0

        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self._process.send_signal(self.signal)
            started.append(self)

    def interrupt(description: str, done: int, total: int) -> None:
        if done and not Dying.signal:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(encode, "Worker", Dying)
    former = signal.signal(signal.SIGALRM, still_waiting)
    signal.alarm(60)
    try:
        for number, kind in [(signal.SIGKILL, OutOfMemory), (signal.SIGTERM, RuntimeError), (0, KeyboardInterrupt)]:
            Dying.signal = number
            started.clear()
            with pytest.raises(kind) as caught:  # which also keeps the frames, as a traceback does
                prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", processes=2, progress=interrupt)
            assert not number or "an encoding process ended unexpectedly" in str(caught.value)
            assert [worker._process.returncode for worker in started] == [-(number or signal.SIGKILL)] * 2
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


class Letters(FileSource):
    """A new source: what its file and its line in SOURCES would be."""

    description = "letters"
    licence = "CC0"
    val_fraction = 0.1
    has_subsets = True

    def __init__(self, config: DataConfig) -> None:
        self.files = find_files(config.path, source="letters")

    def documents(self, stats):
        for line in self.files[0].read_text().splitlines():
            yield [line]

    @classmethod
    def download_size(cls, config: DataConfig) -> str:
        return "" if config.path else "26 GB of letters"


def test_a_new_source_is_a_class_and_a_line_in_the_menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "letters", Letters)
    (tmp_path / "letters.txt").write_text("\n".join(documents(400)))
    config = DataConfig(source="letters", path=str(tmp_path / "letters.txt"), tokenizer="bpe", subset="a")
    manifest = prepare(config, vocab_size=300, out=tmp_path / "data")
    assert (manifest.licence, manifest.settings["subset"]) == ("CC0", "a")
    assert manifest.validation == "10.000% of the documents, by SHA-256"
    names = {data_directory(DataConfig(source="letters", subset=subset), 300).name for subset in "ab"}
    assert len(names) == 2
    assert "quill prepare letters --tokenizer bpe --vocab-size 300" in prepare_command(config, 300)


def test_the_help_of_the_setting_names_every_source() -> None:
    assert meanings()["source"] == f"text source: {', '.join(SOURCES)}"
