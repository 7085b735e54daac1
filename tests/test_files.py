"""File output under every failure: afterwards there is the old content or the new one, and nothing else."""

import contextlib
import copy
import errno
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fault_injection import FAILURES, KILLED, LASTING, Disk, exit_code_of_fork, failing
from quillgpt import checkpoint, files
from quillgpt.config import LoraConfig, ModelConfig
from quillgpt.errors import DiskError, LockedError
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.pretrained.adapter import Adapter, Base
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer

Tree = dict[str, bytes]
MODEL = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=257))
ADAPTED = copy.deepcopy(MODEL)
add_adapters(ADAPTED, LoraConfig(lora_rank=2))
BASE = Base(init="gpt2", found="gpt2", relative_path="", weights="0" * 64, model={})
ADAPTER = Adapter(settings=LoraConfig(lora_rank=2), base=BASE)
TOKENIZER = load_tokenizer("byte")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_flock = pytest.mark.skipif(files.fcntl is None, reason="this system has no flock")
ignores_fork_warning = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing takes time; where it matters, `Disk` records it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def tree(folder: Path) -> Tree:
    """Every file and directory below the folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(directory)"
        for path in sorted(folder.rglob("*"))
    }


def contents(of: Tree) -> Tree:
    return {name: content for name, content in of.items() if content != b"(directory)"}


def save(folder: Path, step: int, adapter: Adapter | None = None) -> checkpoint.Checkpoint:
    """Save a checkpoint whose content depends on its step, of all weights or of adapters."""
    return checkpoint.save(
        RunDirectory(folder),
        step=step,
        model=MODEL if adapter is None else ADAPTED,
        adapter=adapter,
        optimizer_state={"head.exp_avg": torch.full((3,), float(step))},
        state={"step": step},
        runtime={},
        config_toml=f"steps = {step}\n",
        tokenizer=TOKENIZER,
        data_fingerprint="data",
        val_loss=float(step),
    )


def write_old(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"old" * 10)


def replace_file(folder: Path) -> None:
    with files.atomic_file(folder / "a.bin") as file:
        file.write(b"new" * 1000)
        file.write(memoryview(b"er" * 2000))


def write_directory(folder: Path) -> None:
    with files.atomic_directory(folder / "complete") as temporary:
        for name in ("a", "b"):
            with files.written_file(temporary / name) as file:
                file.write(name.encode() * 5000)


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "file": (write_old, replace_file),
    "new file": (lambda folder: None, lambda folder: files.write_json(folder / "deep" / "er" / "a.json", {"a": 1})),
    "directory": (write_old, write_directory),
    "checkpoint": (lambda folder: save(folder, 10), lambda folder: save(folder, 20)),
    "checkpoint of adapters": (lambda folder: save(folder, 10, ADAPTER), lambda folder: save(folder, 20, ADAPTER)),
}
"""what makes the old content, and what changes it by one rename"""


def before_and_after(name: str, folder: Path) -> tuple[Tree, Tree]:
    """The contents before the change and after it."""
    prepare, change = CHANGES[name]
    (folder / "model").mkdir()
    prepare(folder / "model")
    before = tree(folder / "model")
    change(folder / "model")
    return before, tree(folder / "model")


def numbered_folders(folder: Path, prepare: Callable[[Path], object]) -> Iterator[tuple[int, Path]]:
    """1, 2, 3, ... with a prepared folder each."""
    for at in itertools.count(1):
        (folder / str(at)).mkdir()
        prepare(folder / str(at))
        yield at, folder / str(at)


def recovered(folder: Path) -> Tree:
    """The content after the clean-up of the next start."""
    for place in [folder, *[path for path in folder.rglob("*") if path.is_dir() and path.name[0] != "."]]:
        files.remove_leftovers(place)
    for found in checkpoint.committed(RunDirectory(folder)):
        checkpoint.verify(found)
    return contents(tree(folder))


def disk_error(change: Callable[[], object], failure: str, at: int) -> str | None:
    """The error of the change with this failure at this operation; None if it has fewer operations."""
    with pytest.MonkeyPatch.context() as patch:
        disk = failing(patch, failure, at)
        try:
            change()
        except DiskError as error:
            return str(error)
    # A failure that is ignored, as that of making a directory that exists, is not the end either.
    return None if disk.count < at else disk.failed_at


@pytest.mark.parametrize("name", CHANGES)
def test_a_failure_at_any_operation_leaves_the_old_or_the_new_and_names_the_place(name: str, tmp_path: Path) -> None:
    before, after = before_and_after(name, tmp_path)
    prepare, change = CHANGES[name]
    for failure in FAILURES:
        (tmp_path / failure.replace("/", "-")).mkdir()
        for at, folder in numbered_folders(tmp_path / failure.replace("/", "-"), prepare):
            message = disk_error(lambda folder=folder: change(folder), failure, at)
            assert message is None or message.startswith(str(folder))
            is_clean = not any(".tmp-" in path for path in tree(folder))
            assert failure in LASTING or is_clean, f"{failure} at operation {at}"
            assert message is not None or tree(folder) == after
            assert recovered(folder) in (contents(before), contents(after)), f"{failure} at operation {at}"
            if message is None:
                break
        assert at > 5


@needs_fork
@ignores_fork_warning
@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_any_operation_the_next_start_finds_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    before, after = before_and_after(name, tmp_path)
    prepare, change = CHANGES[name]
    for at, folder in numbered_folders(tmp_path, prepare):
        code = exit_code_of_fork(lambda folder=folder: change(folder), at)
        assert recovered(folder) in (contents(before), contents(after)), f"operation {at}"
        if code != KILLED:
            break
    assert code == 0
    assert at > 5


def test_short_writes_are_continued(tmp_path: Path) -> None:
    for name, (prepare, change) in CHANGES.items():
        (tmp_path / name / "short").mkdir(parents=True)
        _, after = before_and_after(name, tmp_path / name)
        prepare(tmp_path / name / "short")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch).writes_short = True
            change(tmp_path / name / "short")
        assert tree(tmp_path / name / "short") == after, name


@pytest.mark.parametrize("name", CHANGES)
def test_everything_is_synced_before_the_rename_and_the_rename_before_the_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, change = CHANGES[name]
    prepare(tmp_path)
    before = {str(path) for path in [tmp_path, *tmp_path.rglob("*")]}
    disk = Disk(monkeypatch)
    change(tmp_path)
    monkeypatch.undo()
    log = [entry for entry in disk.log if entry[0] != "mkdir" or entry[1] not in before]
    (rename,) = [i for i, entry in enumerate(log) if entry[0] == "replace"]
    _, source, target = log[rename]
    written = log[:rename]
    for path in {entry[1] for entry in written if entry[0] == "write"}:
        last_write = max(i for i, entry in enumerate(written) if entry == ("write", path))
        assert ("fsync", path) in written[last_write:], path
    if ("mkdir", source) in written:
        last_entry = max(i for i, entry in enumerate(written) if entry[0] == "open" and source in entry[1])
        assert ("fsync", source) in written[last_entry:]
    assert ("fsync", str(Path(target).parent)) in log[rename:]
    for folder in [entry[1] for entry in log if entry[0] == "mkdir" and entry[1] != source]:
        assert ("fsync", str(Path(folder).parent)) in log[log.index(("mkdir", folder)) :], folder


def checkpoint_steps(folder: Path) -> set[int]:
    """The steps of the checkpoints that the next start finds, each complete."""
    recovered(folder)
    found = checkpoint.committed(RunDirectory(folder))
    assert {path.name for path in RunDirectory(folder).checkpoints.iterdir()} == {entry.path.name for entry in found}
    return {entry.step for entry in found}


@needs_fork
@ignores_fork_warning
@pytest.mark.parametrize("failure", ["killed", *FAILURES])
def test_interrupted_pruning_keeps_the_best_and_the_last_checkpoint(failure: str, tmp_path: Path) -> None:
    def prune(folder: Path) -> None:
        checkpoint.prune(RunDirectory(folder), keep_last=1)

    (tmp_path / "all").mkdir()
    for step in (1, 2, 3, 4):  # the first is the best
        save(tmp_path / "all", step)
    (tmp_path / "runs").mkdir()
    copy_all = partial(shutil.copytree, tmp_path / "all", dirs_exist_ok=True)
    for at, folder in numbered_folders(tmp_path / "runs", copy_all):
        if failure == "killed":
            is_done = exit_code_of_fork(lambda folder=folder: prune(folder), at) == 0
        else:
            message = disk_error(lambda folder=folder: prune(folder), failure, at)
            is_done = message is None
            assert message is None or message.startswith(str(folder))
        assert {1, 4} <= checkpoint_steps(folder) <= {1, 2, 3, 4}, f"operation {at}"
        if is_done:
            break
    assert checkpoint_steps(folder) == {1, 4}
    assert at > 10


def test_a_failing_operation_is_a_disk_error_that_names_the_place(tmp_path: Path) -> None:
    operations: dict[str, Callable[[Path], object]] = {
        "append_line": lambda folder: files.append_line(folder / "a.log", "line"),
        "make_directory": lambda folder: files.make_directory(folder / "b" / "c"),
        "remove_file": lambda folder: files.remove_file(folder / "a.bin"),
        "remove_directory": lambda folder: files.remove_directory(folder / "d"),
        "remove_leftovers": lambda folder: files.remove_leftovers(folder),
        "locked": lambda folder: files.locked(folder).__enter__(),
        "written_file": lambda folder: files.written_file(folder / "x").__enter__().write(b"x"),
    }
    for name, operation in operations.items():
        for number, failure in enumerate(FAILURES):
            folder = tmp_path / name / str(number)
            (folder / "d").mkdir(parents=True)
            (folder / ".tmp-left").mkdir()
            write_old(folder)
            message = disk_error(lambda operation=operation, folder=folder: operation(folder), failure, 1)
            assert message is not None, (name, failure)
            assert message.startswith(str(folder))
            assert "cannot write: " in message
            assert ("MB free there" in message) == (failure == "full disk")


def test_a_lock_on_a_full_disk_is_a_disk_error_and_can_be_taken_later(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, "full disk", 2)
        with pytest.raises(DiskError, match=r"\.lock: cannot write: No space left"), files.locked(tmp_path):
            pass
    with files.locked(tmp_path):
        pass


def test_content_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    with files.atomic_file(tmp_path / "a") as file:
        file.write(b"0123456789")
        file.write(memoryview(b"abcdefghij"))
    assert (tmp_path / "a").read_bytes() == b"0123456789abcdefghij"
    assert (file.size, file.sha256) == (20, files.file_sha256(tmp_path / "a"))


def test_an_error_in_the_block_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    for write in (files.atomic_file, files.written_file, files.atomic_directory):
        for kind in (KeyboardInterrupt, ValueError, MemoryError):
            with pytest.raises(kind), write(tmp_path / "a"):
                raise kind
    for value in (float("nan"), float("inf"), [1, float("-inf")]):
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_exists_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(DiskError, match="Directory not empty"), files.atomic_directory(tmp_path / "a") as temporary:
        (temporary / "x").touch()
    assert list(tree(tmp_path)) == ["a", "a/mine"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_replacement_leaves_the_old_or_the_new_directory_or_the_old_one_renamed(
    failure: str, tmp_path: Path
) -> None:
    for at in range(1, 60):
        folder = tmp_path / str(at)
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "old").touch()
        with pytest.MonkeyPatch.context() as patch:
            disk = failing(patch, failure, at)
            with (
                contextlib.suppress(DiskError),
                files.atomic_directory(folder / "a", replaces=True) as temporary,
                files.written_file(temporary / "new") as file,
            ):
                file.write(b"new")
        if not disk.failed_at:
            assert sorted(tree(folder)) == ["a", "a/new"]
            return
        files.remove_leftovers(folder)
        found = [path for path in folder.iterdir() if path.name == "a" or path.name.startswith("a.replaced-")]
        assert list(folder.iterdir()) == found, "nothing else is left"
        names = sorted([path.name for path in place.iterdir()] for place in found)
        assert names in ([["old"]], [["new"]], [["new"], ["old"]]), f"operation {at}, {disk.failed_at}"
        assert (folder / "a").exists() or failure in LASTING
    pytest.fail("replacing a directory has more operations than expected")


def test_a_file_or_link_with_a_directorys_name_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "file", tmp_path / "file" / "b", tmp_path / "link", tmp_path / "link" / "b"):
        with pytest.raises(DiskError, match=rf"^{path}: cannot write: .*; choose another --out$"):
            files.make_directory(path)


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-directory" / "deep").mkdir(parents=True)
    (tmp_path / ".tmp-file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tmp-file").touch()
    files.remove_leftovers(tmp_path)
    assert list(tree(tmp_path)) == ["kept", "kept/file", "tmp-file"]
    for name in (".tmp-a-01234567", ".tmp-a-b-01234567", ".tmp-[a]-01234567", ".tmp-aa-01234567", "a-01234567"):
        (tmp_path / "kept" / name).mkdir()
    files.remove_leftovers(tmp_path / "kept", of="a")
    files.remove_leftovers(tmp_path / "kept", of="[a]")
    assert sorted(tree(tmp_path / "kept")) == [".tmp-a-b-01234567", ".tmp-aa-01234567", "a-01234567", "file"]


@needs_flock
@needs_fork
@ignores_fork_warning
def test_a_lock_names_its_holder_and_ends_with_its_block_or_process(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path):
        raise ZeroDivisionError
    with files.locked(tmp_path), pytest.raises(LockedError), files.locked(tmp_path):
        pass
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            with files.locked(tmp_path):
                os.write(writer, b"held")
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(reader, 4) == b"held"
    with pytest.raises(LockedError, match=rf"in use by process {holder} on \S+; wait"), files.locked(tmp_path):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with files.locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_a_line_after_one_that_was_cut_short_is_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in ("", "one\n", "one\ntw"):
        path.write_text(content)
        files.append_line(path, "last")
        assert path.read_text() == content + ("\n" if content.endswith("tw") else "") + "last\n"


def test_nothing_is_written_through_a_link_or_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / ".lock").symlink_to("victim")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(DiskError, match=f"{name}: .*; nothing is written through it"):
            files.append_line(tmp_path / name, "x")
    with pytest.raises(DiskError, match="a symbolic link"), files.locked(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_system_without_locks_or_syncing_works_with_one_warning_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def no_sync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "fsync", no_sync)
    with files.locked(tmp_path):
        for text in ("one", "two"):
            files.write_text(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == "two"
    assert [line.partition(": ")[2].partition(";")[0] for line in messages] == [
        "this file system has no locks",
        "this file system cannot sync files",
    ]


def test_a_second_holder_waits_on_request(tmp_path: Path, messages: list[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with files.locked(tmp_path, waits=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.locked(tmp_path):
        thread.start()
        while not messages:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert f"process {os.getpid()}" in messages[0]


def test_a_file_set_aside_replaces_no_other(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "log").write_text(content)
        files.set_aside(tmp_path / "log")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"log.1": "one", "log.2": "two"}
