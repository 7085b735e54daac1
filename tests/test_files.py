"""All file output, under every failure: the old content or the new one, never a mixture, and nothing left behind."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fault_injection import FAILURES, KILLED, LASTING, Disk, exit_code_of_fork, failing
from quillgpt import checkpoint, files
from quillgpt.config import LoraConfig, ModelConfig
from quillgpt.errors import DiskError, LockedError
from quillgpt.model.gpt import GPT
from quillgpt.model.lora import add_adapters
from quillgpt.pretrained.adapted import Adapter, Base
from quillgpt.run_dir import RunDirectory
from quillgpt.tokenizer import load_tokenizer

Tree = dict[str, bytes]
TORCH_SEED = 1
MODEL = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=257))
ADAPTED = copy.deepcopy(MODEL)
add_adapters(ADAPTED, LoraConfig(lora_rank=2))
BASE = Base(init="gpt2", found="gpt2", beside="", weights="0" * 64, model={})
ADAPTER = Adapter(settings=LoraConfig(lora_rank=2), base=BASE)
TOKENIZER = load_tokenizer("byte")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced is recorded where it matters; here nothing loses power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def tree(folder: Path) -> Tree:
    """Every file and directory below the folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(directory)"
        for path in sorted(folder.rglob("*"))
    }


def save(folder: Path, step: int, adapter: Adapter | None = None) -> checkpoint.Checkpoint:
    """A checkpoint whose content says its step, of all weights or of adapters."""
    return checkpoint.save(
        RunDirectory(folder),
        step=step,
        model=MODEL if adapter is None else ADAPTED,
        adapter=adapter,
        optimizer_state={"head.exp_avg": torch.full((3,), float(step))},
        state={"step": step},
        resolved={},
        config_toml=f"steps = {step}\n",
        tokenizer=TOKENIZER,
        data_fingerprint="data",
        held_out_loss=float(step),
    )


def replaces_a_file(folder: Path) -> None:
    with files.atomic_file(folder / "a.bin") as file:
        file.write(b"new" * 1000)
        file.write(memoryview(b"er" * 2000))


def makes_a_file_in_new_folders(folder: Path) -> None:
    files.write_json(folder / "deep" / "er" / "a.json", {"a": 1})


def makes_a_directory(folder: Path) -> None:
    with files.atomic_directory(folder / "whole") as temporary:
        for name in ("a", "b"):
            with files.written_file(temporary / name) as file:
                file.write(name.encode() * 5000)


def saves_a_checkpoint(folder: Path) -> None:
    save(folder, 20)


def saves_adapters(folder: Path) -> None:
    save(folder, 20, ADAPTER)


def old_file(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"old" * 10)


def old_checkpoint(folder: Path) -> None:
    save(folder, 10)


def old_adapters(folder: Path) -> None:
    save(folder, 10, ADAPTER)


SWAPS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "file": (old_file, replaces_a_file),
    "new file": (lambda folder: None, makes_a_file_in_new_folders),
    "directory": (old_file, makes_a_directory),
    "checkpoint": (old_checkpoint, saves_a_checkpoint),
    "checkpoint of adapters": (old_adapters, saves_adapters),
}
"""what there is, and what changes it by one rename"""


def before_and_after(name: str, folder: Path) -> tuple[Tree, Tree]:
    """The contents before the change and after it."""
    begin, change = SWAPS[name]
    (folder / "model").mkdir()
    begin(folder / "model")
    before = tree(folder / "model")
    change(folder / "model")
    return before, tree(folder / "model")


def recovered(folder: Path) -> Tree:
    """What a next start finds, after its tidying."""
    for place in [folder, *[path for path in folder.rglob("*") if path.is_dir() and path.name[0] != "."]]:
        files.remove_leftovers(place)
    for found in checkpoint.committed(RunDirectory(folder)):
        checkpoint.verify(found)
    return {name: content for name, content in tree(folder).items() if content != b"(directory)"}


def contents(of: Tree) -> Tree:
    return {name: content for name, content in of.items() if content != b"(directory)"}


def disk_error(change: Callable[[], object], failure: str, at: int) -> str | None:
    """How the change ends with this failure at this operation; None once there are not so many operations."""
    with pytest.MonkeyPatch.context() as patch:
        disk = failing(patch, failure, at)
        try:
            change()
        except DiskError as error:
            return str(error)
    # A failure that is passed over, as that of making a directory that exists, is not the end either.
    return None if disk.count < at else disk.failed_at


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", SWAPS)
def test_a_failure_at_any_operation_leaves_the_old_or_the_new_and_names_the_place(
    name: str, failure: str, tmp_path: Path
) -> None:
    before, after = before_and_after(name, tmp_path)
    at, is_done = 0, False
    while not is_done:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        SWAPS[name][0](folder)
        message = disk_error(lambda folder=folder: SWAPS[name][1](folder), failure, at)
        is_done = message is None
        assert message is None or message.startswith(str(folder))
        assert failure in LASTING or not any(".tmp-" in path for path in tree(folder)), f"operation {at}"
        assert recovered(folder) in (contents(before), contents(after)), f"operation {at}"
        assert not is_done or tree(folder) == after
    assert at > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", SWAPS)
def test_killed_at_any_operation_the_next_start_finds_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    before, after = before_and_after(name, tmp_path)
    at, code = 0, KILLED
    while code == KILLED:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        SWAPS[name][0](folder)
        code = exit_code_of_fork(lambda folder=folder: SWAPS[name][1](folder), at)
        assert recovered(folder) in (contents(before), contents(after)), f"operation {at}"
    assert code == 0
    assert at > 5


@pytest.mark.parametrize("name", SWAPS)
def test_short_writes_are_continued(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, after = before_and_after(name, tmp_path)
    folder = tmp_path / "short"
    folder.mkdir()
    SWAPS[name][0](folder)
    Disk(monkeypatch).writes_short = True
    SWAPS[name][1](folder)
    monkeypatch.undo()
    assert tree(folder) == after


@pytest.mark.parametrize("name", SWAPS)
def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SWAPS[name][0](tmp_path)
    before = {str(path) for path in [tmp_path, *tmp_path.rglob("*")]}
    disk = Disk(monkeypatch)
    SWAPS[name][1](tmp_path)
    monkeypatch.undo()
    log = [entry for entry in disk.log if entry[0] != "mkdir" or entry[1] not in before]
    renames = [i for i, entry in enumerate(log) if entry[0] == "replace"]
    assert len(renames) == 1
    _, source, target = log[renames[0]]
    prepared = log[: renames[0]]
    for path in {entry[1] for entry in prepared if entry[0] == "write"}:
        last_write = max(i for i, entry in enumerate(prepared) if entry == ("write", path))
        assert ("fsync", path) in prepared[last_write:], path
    if ("mkdir", source) in prepared:
        last_entry = max(i for i, entry in enumerate(prepared) if entry[0] == "open" and source in entry[1])
        assert ("fsync", source) in prepared[last_entry:]
    assert ("fsync", str(Path(target).parent)) in log[renames[0] :]
    for folder in [entry[1] for entry in log if entry[0] == "mkdir" and entry[1] != source]:
        assert ("fsync", str(Path(folder).parent)) in log[log.index(("mkdir", folder)) :], folder


def several_checkpoints(folder: Path) -> None:
    for step in (1, 2, 3, 4):  # the first is the best
        save(folder, step)


def prunes(folder: Path) -> None:
    checkpoint.prune(RunDirectory(folder), keep_last=1)


def steps(folder: Path) -> set[int]:
    """The steps of the checkpoints that a next start finds, each of them whole."""
    recovered(folder)
    found = checkpoint.committed(RunDirectory(folder))
    assert {path.name for path in RunDirectory(folder).checkpoints.iterdir()} == {entry.path.name for entry in found}
    return {entry.step for entry in found}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("failure", ["killed", *FAILURES])
def test_pruning_that_stops_anywhere_keeps_the_best_and_the_last_whole(failure: str, tmp_path: Path) -> None:
    at, is_done = 0, False
    while not is_done:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        several_checkpoints(folder)
        if failure == "killed":
            is_done = exit_code_of_fork(lambda folder=folder: prunes(folder), at) == 0
        else:
            message = disk_error(lambda folder=folder: prunes(folder), failure, at)
            is_done = message is None
            assert message is None or message.startswith(str(folder))
        assert {1, 4} <= steps(folder) <= {1, 2, 3, 4}, f"operation {at}"
    assert steps(folder) == {1, 4}
    assert at > 10


OTHERS: dict[str, Callable[[Path], None]] = {
    "append_line": lambda folder: files.append_line(folder / "a.log", "line"),
    "make_directory": lambda folder: files.make_directory(folder / "b" / "c"),
    "remove_file": lambda folder: files.remove_file(folder / "a.bin"),
    "remove_directory": lambda folder: files.remove_directory(folder / "d"),
    "remove_leftovers": lambda folder: files.remove_leftovers(folder),
    "locked": lambda folder: files.locked(folder).__enter__(),
    "written_file": lambda folder: files.written_file(folder / "x").__enter__().write(b"x"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", OTHERS)
def test_the_first_operation_that_fails_is_a_disk_error_that_names_the_place(
    name: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / ".tmp-left").mkdir()
    failing(monkeypatch, failure, 1)
    with pytest.raises(DiskError) as caught:
        OTHERS[name](tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "cannot write: " in str(caught.value)
    assert ("MB free there" in str(caught.value)) == (failure == "full disk")


def test_a_full_disk_that_refuses_the_locks_own_line_is_a_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "full disk", 2)
    with pytest.raises(DiskError, match=r"\.lock: cannot write: No space left"), files.locked(tmp_path):
        pass
    monkeypatch.undo()
    with files.locked(tmp_path):
        pass


def test_content_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    with files.atomic_file(tmp_path / "a") as file:
        file.write(b"0123456789")
        file.write(memoryview(b"abcdefghij"))
    assert (tmp_path / "a").read_bytes() == b"0123456789abcdefghij"
    assert (file.size, file.sha256) == (20, files.file_sha256(tmp_path / "a"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, MemoryError])
@pytest.mark.parametrize("write", [files.atomic_file, files.written_file, files.atomic_directory])
def test_an_error_in_the_block_leaves_nothing_and_stays_itself(
    write: Callable, kind: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(kind), write(tmp_path / "a"):
        raise kind
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, float("-inf")]])
def test_json_that_others_cannot_read_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(DiskError, match="Directory not empty"), files.atomic_directory(tmp_path / "a") as temporary:
        (temporary / "x").touch()
    assert list(tree(tmp_path)) == ["a", "a/mine"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_directory_being_replaced_is_the_old_one_or_the_new_one_or_the_old_one_beside_its_place(
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
        contents = sorted([path.name for path in place.iterdir()] for place in found)
        assert contents in ([["old"]], [["new"]], [["new"], ["old"]]), f"operation {at}, {disk.failed_at}"
        assert (folder / "a").exists() or failure in LASTING
    pytest.fail("replacing a directory has more operations than expected")


@pytest.mark.parametrize("what", ["file", "link"])
def test_something_in_the_way_of_a_directory_is_one_line(what: str, tmp_path: Path) -> None:
    if what == "file":
        (tmp_path / "a").touch()
    else:
        (tmp_path / "a").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
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


HOLD = "import sys, time\nfrom pathlib import Path\nfrom quillgpt import files\n"
HOLD += "with files.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


@pytest.mark.skipif(files.fcntl is None, reason="this system has no flock")
def test_leftovers_of_one_name_are_removed_without_those_of_others(tmp_path: Path) -> None:
    for name in (".tmp-a-01234567", ".tmp-a-b-01234567", ".tmp-[a]-01234567", ".tmp-aa-01234567", "a-01234567"):
        (tmp_path / name).mkdir()
    files.remove_leftovers(tmp_path, of="a")
    files.remove_leftovers(tmp_path, of="[a]")
    assert sorted(tree(tmp_path)) == [".tmp-a-b-01234567", ".tmp-aa-01234567", "a-01234567"]


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=rf"in use by process {holder.pid} on \S+; wait"), files.locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    with files.locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


@pytest.mark.skipif(files.fcntl is None, reason="this system has no flock")
def test_a_lock_ends_with_its_block_also_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path):
        raise ZeroDivisionError
    with files.locked(tmp_path), pytest.raises(LockedError), files.locked(tmp_path):
        pass
