"""`prepare` writes the same bytes however often it is killed, and holds out what the rules say."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quillgpt import files
from quillgpt.config import DataConfig
from quillgpt.data import disk_space, document, encode
from quillgpt.data import prepare as prepare_module
from quillgpt.data.encode_worker import main as worker_main
from quillgpt.data.manifest import MANIFEST, WORK, Manifest
from quillgpt.data.nanogpt_files import write_nanogpt_files
from quillgpt.data.prepare import prepare
from quillgpt.data.sources import SOURCES, open_source, split_texts, training_texts
from quillgpt.data.text_to_shards import Means
from quillgpt.data.token_dataset import TokenDataset, load_data_tokenizer
from quillgpt.errors import ConfigError, DataError, DiskError, LockedError, OutOfMemory, QuillError
from quillgpt.tokenizer import load_tokenizer, train_tokenizer

END = 256


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(count: int = 300) -> list[str]:
    return [f"Document {i}: " + "word " * (i % 17) + "é end.\r\n" for i in range(count)]


def corpus(folder: Path, texts: list[str] | None = None, **settings) -> DataConfig:
    path = write_lines(folder / "corpus.jsonl", documents() if texts is None else texts)
    return DataConfig(**({"source": "jsonl", "path": str(path), "tokenizer": "byte"} | settings))


def read_split(directory: Path, split: str) -> list[bytes]:
    """The documents of a split, from its shards."""
    found = []
    for shard in TokenDataset.open(directory, split).shards:
        parts = np.split(np.asarray(shard.tokens), shard.document_ends[:-1])
        found += [part.tolist() for part in parts]
    assert all(tokens[-1] == END for tokens in found)
    return [bytes(tokens[:-1]) for tokens in found]


def digests(directory: Path) -> dict[str, str]:
    """Every file of a directory by its hash; the lock says who ran last."""
    return {path.name: files.file_sha256(path) for path in sorted(directory.iterdir()) if path.name != ".lock"}


def test_documents_are_held_out_by_the_hash_of_their_bytes(tmp_path: Path) -> None:
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", shard_tokens=2000)
    held_out = [
        text.encode() for text in documents() if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 < 0.05
    ]
    assert read_split(tmp_path / "data", "val") == held_out
    assert read_split(tmp_path / "data", "train") == [
        text.encode() for text in documents() if text.encode() not in held_out
    ]


def test_exact_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    prepare(corpus(tmp_path, documents() * 3), vocab_size=0, out=tmp_path / "data")
    train, val = (set(read_split(tmp_path / "data", split)) for split in ("train", "val"))
    assert not train & val
    assert len(train | val) == 300


@pytest.mark.parametrize("count", [1, 2, 99])
def test_few_documents_are_cut_at_nine_tenths_of_their_characters(count: int, tmp_path: Path) -> None:
    texts = documents(count)
    prepare(corpus(tmp_path, texts), vocab_size=0, out=tmp_path / "data")
    text = "".join(texts)
    cut = len(text) * 9 // 10
    assert b"".join(read_split(tmp_path / "data", "train")).decode() == text[:cut]
    assert b"".join(read_split(tmp_path / "data", "val")).decode() == text[cut:]


def test_many_equal_documents_are_cut_by_position_because_a_hash_cannot_split_them(tmp_path: Path) -> None:
    manifest = prepare(corpus(tmp_path, ["the same text"] * 200), vocab_size=0, out=tmp_path / "data")
    assert manifest.total("val", "text_bytes") == 260


@pytest.mark.parametrize("count", [40, 300])
def test_a_tokenizer_learns_from_exactly_the_training_split(count: int, tmp_path: Path) -> None:
    config = corpus(tmp_path, documents(count))
    prepare(config, vocab_size=0, out=tmp_path / "data")
    assert [text.encode() for text in training_texts(config)] == read_split(tmp_path / "data", "train")
    assert [text.encode() for text in split_texts(config, "val")] == read_split(tmp_path / "data", "val")


@pytest.mark.parametrize("name", ["bpe", "character"])
def test_a_trained_tokenizer_has_never_seen_held_out_text(name: str, tmp_path: Path) -> None:
    config = corpus(tmp_path, ["".join(documents(90)) + "ÿÿÿÿ" * 10], tokenizer=name)
    prepare(config, vocab_size=280, out=tmp_path / "data")
    tokenizer = load_data_tokenizer(tmp_path / "data")
    expected = train_tokenizer(name, training_texts(config), 280)
    assert "ÿ" not in "".join(training_texts(config))
    assert tokenizer.fingerprint == expected.fingerprint


def test_the_limit_takes_the_first_documents(tmp_path: Path) -> None:
    prepare(corpus(tmp_path, documents=120), vocab_size=0, out=tmp_path / "data")
    found = read_split(tmp_path / "data", "train") + read_split(tmp_path / "data", "val")
    assert set(found) == {text.encode() for text in documents(120)}


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    manifest = prepare(corpus(tmp_path, ["", *documents(), ""]), vocab_size=0, out=tmp_path / "data")
    assert manifest.empty_documents == 2
    assert sum(manifest.total(split, "documents") for split in ("train", "val")) == 300


@pytest.mark.parametrize("name", ["bpe", "byte", "character"])
def test_a_long_document_cut_into_pieces_gives_the_tokens_of_the_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"He said: 'it's {i}'  \n\n\tnaïve—{'x' * (i % 40)}" for i in range(400))
    monkeypatch.setattr(document, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(document, "CUT_SEARCH_CHARACTERS", 300)
    config = corpus(tmp_path, [text], tokenizer=name)
    prepare(config, vocab_size=300, out=tmp_path / "data", shard_tokens=3000)
    tokenizer = load_data_tokenizer(tmp_path / "data")
    shards = TokenDataset.open(tmp_path / "data", "train").shards
    tokens = np.concatenate([shard.tokens for shard in shards])
    assert len(shards) > 1
    assert tokens.tolist() == [*tokenizer.encode(text[: len(text) * 9 // 10]), tokenizer.end_of_text]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_where_a_document_is_cut_does_not_depend_on_how_it_is_read(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(document, "CUT_SEARCH_CHARACTERS", 50)
    text = "some words, " * 50 + "9" * 250 + "\nand more words " * 20
    pieces = list(document.cut(text[start : start + block] for start in range(0, len(text), block)))
    assert pieces == list(document.cut([text]))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 1000)
    config = corpus(tmp_path)
    for processes in (1, 3):
        means = Means(processes=processes)
        prepare(config, vocab_size=0, out=tmp_path / f"data{processes}", shard_tokens=2000, means=means)
    assert digests(tmp_path / "data1") == digests(tmp_path / "data3")


class Failpoint:
    """Counts the file operations of `files.py` and lets one of them fail; nothing waits for the disk meanwhile."""

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


SMALL = {"vocab_size": 0, "shard_tokens": 2500, "means": Means(processes=1)}


def small_corpus(folder: Path) -> DataConfig:
    return corpus(folder, documents(120))


def exit_code_when_killed_at(operation: int, config: DataConfig, out: Path) -> int:
    """Prepare in a fork that ends without a word at that file operation; 0 when it was done before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Failpoint(pytest.MonkeyPatch(), operation, lambda: os._exit(9))
            prepare(config, out=out, **SMALL)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_file_operation_and_run_again_it_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_corpus(tmp_path)
    prepare(config, out=tmp_path / "straight", **SMALL)
    expected = digests(tmp_path / "straight")
    assert len(expected) >= 6  # several shards: there is something to continue with
    assert WORK not in expected
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    operation = 0
    code = 9
    while code == 9:
        operation += 1
        out = tmp_path / f"killed{operation}"
        code = exit_code_when_killed_at(operation, config, out)
        prepare(config, out=out, **SMALL)
        assert digests(out) == expected, f"killed at operation {operation}"
        shutil.rmtree(out)
    assert code == 0
    assert operation > 50


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_any_file_operation_is_one_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_corpus(tmp_path)
    prepare(config, out=tmp_path / "straight", **SMALL)
    expected = digests(tmp_path / "straight")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    operation, failed = 0, True
    while failed:
        operation += 1
        out = tmp_path / f"full{operation}"
        with monkeypatch.context() as patch:
            point = Failpoint(patch, operation, full_disk)
            failed = False
            try:
                prepare(config, out=out, **SMALL)
            except DiskError:
                failed = True
        assert not list(out.glob(f"{files.TEMPORARY_PREFIX}*")), f"operation {point.count}"
        prepare(config, out=out, **SMALL)
        assert digests(out) == expected, f"disk full at operation {operation}"
        shutil.rmtree(out)
    assert operation > 50


def test_a_continued_run_encodes_only_what_no_shard_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_corpus(tmp_path)
    out = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_notes", lambda tally: pytest.fail("stopped after the last shard"))
        with pytest.raises(pytest.fail.Exception):
            prepare(config, out=out, **SMALL)
    assert not (out / MANIFEST).exists()
    monkeypatch.setattr(encode, "encode_piece", lambda *arguments: pytest.fail("encoded again"))
    assert prepare(config, out=out, **SMALL).total("train", "documents") > 100


def stopped_after(writes: int, config: DataConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare until so many shards are written."""
    from quillgpt.data import shard_writer

    real, count = shard_writer.write_shard, 0

    def write_shard(*arguments, **options):
        nonlocal count
        count += 1
        if count > writes:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, out=out, **SMALL)


@pytest.mark.parametrize("edit", ["changed", "shorter"])
def test_text_that_changed_between_two_runs_is_noticed(
    edit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(2, small_corpus(tmp_path), tmp_path / "data", monkeypatch)
    texts = documents(120) if edit == "changed" else documents(101)[:20]
    texts[3] = "another text"
    write_lines(tmp_path / "corpus.jsonl", texts)
    with pytest.raises(DataError, match="the text is not the one that was begun with"):
        prepare(corpus(tmp_path, texts), out=tmp_path / "data", **SMALL)


def test_other_settings_for_a_finished_directory_are_refused_with_the_difference(tmp_path: Path) -> None:
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data")
    with pytest.raises(ConfigError, match="tokenizer was 'byte', now 'character'; documents was 0, now 50"):
        prepare(corpus(tmp_path, tokenizer="character", documents=50), vocab_size=0, out=tmp_path / "data")


def test_other_settings_for_an_interrupted_directory_are_refused_when_shards_would_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_corpus(tmp_path)
    stopped_after(1, config, tmp_path / "data", monkeypatch)
    with pytest.raises(ConfigError, match="tokenizer was 'byte', now 'character'"):
        prepare(DataConfig(source="jsonl", path=config.path, tokenizer="character"), out=tmp_path / "data", **SMALL)


def test_other_settings_before_the_first_shard_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_corpus(tmp_path)
    stopped_after(0, config, tmp_path / "data", monkeypatch)
    assert (tmp_path / "data" / WORK).exists()
    other = DataConfig(source="jsonl", path=config.path, tokenizer="character")
    assert prepare(other, out=tmp_path / "data", **SMALL).tokenizer["name"] == "character"


def test_a_finished_directory_returns_at_once_even_without_its_source(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    made = prepare(config, vocab_size=0, out=tmp_path / "data")
    Path(config.path).unlink()
    again = prepare(config, vocab_size=0, out=tmp_path / "data")
    assert again == made
    assert isinstance(again, Manifest)


def test_where_the_data_are_placed_is_no_setting_of_theirs(tmp_path: Path) -> None:
    prepare(corpus(tmp_path, data=str(tmp_path / "data")), vocab_size=0, out=tmp_path / "data")
    prepare(corpus(tmp_path, data="auto"), vocab_size=0, out=tmp_path / "data")


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".tmp-notes").write_text("keep")
    (tmp_path / "mine" / "thesis.tex").write_text("keep")
    with pytest.raises(ConfigError, match="files in it that `quill prepare` did not make"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_two_preparations_in_one_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with files.locked(tmp_path / "data"), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data")


def test_a_disk_too_small_is_said_before_the_work(tmp_path: Path) -> None:
    means = Means(disk_usage=lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskError, match=r"needs about 0 MB, 0 MB are free there; .*--documents"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", means=means)
    assert not list((tmp_path / "data").glob("*.bin"))


def test_the_estimate_of_size_is_near_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "SAMPLE_BYTES", 4000)
    config = corpus(tmp_path)
    tokenizer = load_tokenizer("byte")
    guess = disk_space.estimate(open_source(config), tokenizer, limit=0)
    manifest = prepare(config, vocab_size=0, out=tmp_path / "data")
    assert guess.file_bytes == pytest.approx(sum(manifest.total(s, "file_bytes") for s in ("train", "val")), rel=0.4)
    assert disk_space.estimate(open_source(config), tokenizer, limit=150).text_bytes == pytest.approx(
        guess.text_bytes / 2, rel=0.3
    )


def test_progress_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 1000)
    states = []
    means = Means(processes=1, progress=states.append)
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", means=means)
    done = [state.bytes_done for state in states]
    assert done == sorted(done)
    assert len(done) > 5
    assert done[-1] == sum(len(text.encode()) for text in documents())
    assert states[-1].documents == 300
    assert all(state.bytes_total >= state.bytes_done and state.bytes_per_second > 0 for state in states)


def test_nanogpt_files_are_the_ids_of_all_documents_and_nothing_else(tmp_path: Path) -> None:
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", shard_tokens=2000)
    write_nanogpt_files(tmp_path / "data")
    for split in ("train", "val"):
        expected = [token for text in read_split(tmp_path / "data", split) for token in [*text, END]]
        assert np.fromfile(tmp_path / "data" / f"{split}.bin", dtype="<u2").tolist() == expected


def test_a_vocabulary_too_large_for_nanogpt_is_refused(tmp_path: Path) -> None:
    prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data")
    path = tmp_path / "data" / MANIFEST
    path.write_text(path.read_text().replace('"vocab_size": 257', '"vocab_size": 70000'))
    with pytest.raises(ConfigError, match="holds ids below 65,536"):
        write_nanogpt_files(tmp_path / "data")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """A single line of 8 MB and one of 32 MB; whole documents in memory would differ by 24 MB and more."""
    script = (
        "import re, sys; from pathlib import Path; from quillgpt.config import DataConfig;"
        "from quillgpt.data.prepare import prepare; from quillgpt.data.text_to_shards import Means;"
        "prepare(DataConfig(source='text', path=sys.argv[1], tokenizer='byte'), vocab_size=0, out=Path(sys.argv[2]),"
        "        shard_tokens=1 << 20, means=Means(processes=1));"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"  # ru_maxrss counts the parent
    )
    kilobytes = []
    for megabytes in (8, 32):
        path = tmp_path / f"{megabytes}.txt"
        path.write_bytes(b"no line ends here " * (megabytes * 1_000_000 // 18))
        command = [sys.executable, "-c", script, str(path), str(tmp_path / f"data{megabytes}")]
        kilobytes.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    assert kilobytes[1] - kilobytes[0] < 10_000


def processes_of(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_encoding_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"word " * 8_000_000)
    command = ["prepare", "text", "--path", str(path), "--tokenizer", "byte", "--processes", "2", "--out", "data"]
    with subprocess.Popen([sys.executable, "-m", "quillgpt", *command], cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 20
        while len(workers := processes_of(run.pid)) < 2:
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    path.unlink()
    while any(Path(f"/proc/{pid}").exists() or not _is_gone(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("signal_number", "kind"), [(signal.SIGKILL, OutOfMemory), (signal.SIGTERM, RuntimeError)])
def test_an_encoding_process_that_dies_is_an_error_and_not_a_wait(
    signal_number: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 200)
    started = []

    class Dying(encode.Worker):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self._process.send_signal(signal_number)
            started.append(self)

    monkeypatch.setattr(encode, "Worker", Dying)
    with pytest.raises(kind, match="an encoding process ended unexpectedly"):
        prepare(corpus(tmp_path), vocab_size=0, out=tmp_path / "data", means=Means(processes=2))
    assert [worker._process.returncode for worker in started] == [-signal_number] * 2


def test_ctrl_c_ends_a_preparation_with_encoding_processes_at_once(tmp_path: Path) -> None:
    """In a process of its own, because what used to go wrong was to wait for ever."""
    write_lines(tmp_path / "lines.jsonl", ["some words " * 20_000] * 100)
    script = (
        "import signal; from pathlib import Path; from quillgpt.config import DataConfig;"
        "from quillgpt.data import encode; from quillgpt.data.prepare import prepare;"
        "from quillgpt.data.text_to_shards import Means;"
        "encode.BATCH_BYTES = 1000; config = DataConfig(source='jsonl', path='lines.jsonl', tokenizer='byte');"
        "means = Means(processes=3, progress=lambda state: signal.raise_signal(signal.SIGINT));"
        "prepare(config, vocab_size=0, out=Path('data'), means=means)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_an_error_in_an_encoding_process_is_the_error_of_the_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's loop, run here with a tokenizer whose ids do not fit its vocabulary."""
    piece = b"some text"
    request = io.BytesIO()
    encode.send(request, bytes([1]), piece)
    request.seek(0)
    answer = io.BytesIO()
    broken = SimpleNamespace(encode_array=lambda text: np.array([70_000]), end_of_text=1, vocab_size=300)
    monkeypatch.setattr("quillgpt.data.encode_worker.load_tokenizer", lambda path: broken)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=request))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=answer))
    worker_main()
    answer.seek(0)
    assert encode.receive(answer) == [
        b"token 70000 is outside the vocabulary of 300 tokens; use the tokenizer it came from"
    ]


@pytest.mark.parametrize("error", [ConfigError, DataError, DiskError, LockedError])
def test_every_error_of_a_preparation_is_one_that_the_user_can_mend(error: type) -> None:
    assert issubclass(error, QuillError)


def test_every_source_has_a_line_in_the_settings() -> None:
    from quillgpt.config import meanings

    assert meanings()["source"] == f"text source: {', '.join(SOURCES)}"
