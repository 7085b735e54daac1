"""Each source gives its documents unchanged, in the same order every time."""

import hashlib
import json
import os
import pickle
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from small_corpora import byte_config, read_tokens

from quillgpt.config import DataConfig
from quillgpt.data import document
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import SourceStats, TextSource
from quillgpt.data.prepare import prepare
from quillgpt.data.shards import SHARD_TOKENS, write_nanogpt_files
from quillgpt.data.sources import SOURCES, open_source, shakespeare, training_texts
from quillgpt.data.sources.download import Download, fetch
from quillgpt.data.sources.files import decoded
from quillgpt.errors import ConfigError, DataError

SHARED_SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
TEXTS = ["First line.\r\nSecond\rthird\n", "naïve 敏捷 🙂\x00\ufeff", "", "  leading and trailing \n\n"]
TEXTS += [f"Document {i}.\n" for i in range(7)]


def write_parquet(path: Path, texts: list, field: str = "text") -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({field: texts, "id": list(range(len(texts)))})
    parquet.write_table(table, path, row_group_size=3)
    return path


def write_texts(folder: Path) -> None:
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02d}.txt").write_bytes(text.encode())


def write_json_lines(folder: Path) -> None:
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS)]
    (folder / "lines.jsonl").write_text("\n\n".join(lines), encoding="utf-8")


def write_parquet_files(folder: Path) -> None:
    write_parquet(folder / "0.parquet", TEXTS[:4])
    write_parquet(folder / "1.parquet", TEXTS[4:])


LOCAL_SOURCES: dict[str, Callable[[Path], None]] = {
    "text": write_texts,
    "jsonl": write_json_lines,
    "parquet": write_parquet_files,
    "openwebtext": write_parquet_files,
    "fineweb-edu": write_parquet_files,
}
OTHER_SOURCES = {"python", "shakespeare", "nanogpt"}  # a test cannot choose their text; tested one by one below


def documents_of(config: DataConfig, stats: SourceStats | None = None) -> list[str]:
    source = open_source(config)
    assert isinstance(source, TextSource)
    passes = [["".join(blocks) for blocks in source.documents(stats or SourceStats())] for _ in range(1 + (not stats))]
    assert passes[0] == passes[-1]
    return passes[0]


def test_every_source_gives_each_document_unchanged_and_can_be_prepared_with_its_licence(tmp_path: Path) -> None:
    assert set(LOCAL_SOURCES) | OTHER_SOURCES == set(SOURCES)
    size = sum(len(text.encode()) for text in TEXTS)
    for name, write in LOCAL_SOURCES.items():
        folder, out = tmp_path / name, tmp_path / f"{name}-data"
        folder.mkdir()
        write(folder)
        config = byte_config(name, folder)
        assert documents_of(config) == TEXTS, name
        source = open_source(config)
        assert size / 2 < source.text_bytes() < size * 5, name
        assert source.download_size(config) == "", name
        prepare(config, vocab_size=0, out=out)
        train, val = (TokenDataset.open(out, split) for split in ("train", "val"))
        assert (train.source, train.licence) == (name, source.licence)
        assert train.text_bytes + val.text_bytes == len("".join(TEXTS).encode()), name


def test_python_is_the_standard_library_without_tests_and_tables() -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"}
    expected = [path for path in folder.rglob("*.py") if not left_out & set(path.relative_to(folder).parts)]
    found = documents_of(DataConfig(source="python"))
    assert found == [path.read_bytes().decode() for path in sorted(expected, key=Path.as_posix)]
    assert len(found) > 300
    assert any("class OrderedDict" in text for text in found)


def test_python_names_a_file_that_is_not_utf8_and_reports_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"no Python standard library as \.py files"):
        open_source(DataConfig(source="python"))
    for i in range(4):
        (tmp_path / f"module{i}.py").write_text("import this\n" * 20)
    (tmp_path / "old.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    manifest = prepare(DataConfig(source="python", tokenizer="byte"), vocab_size=0, out=tmp_path / "data")
    assert manifest.notes == ["1 file was skipped because it is not UTF-8: old.py"]


def test_text_takes_globs_and_folders_in_a_fixed_order_without_hidden_and_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "sub/d.txt", "sub/c.txt", "sub/.hidden/x.txt", "n[1].text"):
        (tmp_path / name).write_text(Path(name).stem)
    found = {"*.txt": "ab", "**/*.txt": "abcd", "[a]*.txt": "a", "sub": "cd", "n[1].text": "n[1]"}
    for path, expected in found.items():
        assert "".join(documents_of(DataConfig(source="text", path=str(tmp_path / path)))) == expected
    os.symlink(tmp_path / "sub", tmp_path / "sub" / "again")
    os.symlink(tmp_path / "a.txt", tmp_path / "sub" / "e.txt")
    assert documents_of(DataConfig(source="text", path=str(tmp_path / "sub"))) == ["c", "d", "a"]


def test_replaced_bytes_are_counted_wherever_blocks_end() -> None:
    content = "é敏🙂\ufffd".encode() + b"\xff" + "🙂".encode()[:3] + b"a\xc3" + "ok é\ufffd".encode() + b"\xe6\x95"
    for size in (1, 2, 3, 5, 1 << 20):
        stats = SourceStats()
        blocks = [content[start : start + size] for start in range(0, len(content), size)]
        text = "".join(decoded(blocks, path=Path("x"), errors="replace", stats=stats))
        assert text == content.decode(errors="replace"), size
        assert stats.replacements == text.count("\ufffd") - 2, size  # two were in the text


def test_the_field_of_the_text_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "found", "text": 3}\n')
    write_parquet(tmp_path / "a.parquet", ["found"], field="body")
    for source in ("jsonl", "parquet", "openwebtext", "fineweb-edu"):
        assert documents_of(DataConfig(source=source, path=str(tmp_path), text_field="body")) == ["found"], source


def test_jsonl_skips_a_byte_order_mark_replaces_half_characters_and_gives_long_text_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stats = tmp_path / "a.jsonl", SourceStats()
    path.write_bytes(b'\xef\xbb\xbf{"text": "found"}\r\n{"text": "whole \\ud83d\\ude42, half \\ud83d"}\n')
    config = DataConfig(source="jsonl", path=str(path), errors="replace")
    assert documents_of(config, stats) == ["found", "whole 🙂, half \ufffd"]
    assert stats.replacements == 1
    monkeypatch.setattr(document, "CHUNK_CHARACTERS", 10)
    path.write_text(json.dumps({"text": "0123456789" * 3 + "end"}))
    (blocks,) = open_source(config).documents(SourceStats())
    assert [len(block) for block in blocks] == [10, 10, 10, 3]


def test_the_hubs_data_sets_have_the_documented_validation_shares_and_sizes() -> None:
    web = DataConfig(source="openwebtext")
    assert open_source(web).val_fraction == 0.0005  # nanoGPT's
    assert open_source(web).download_size(web) == "40 GB of text, which become 18 GB of tokens"
    for subset, tokens in {"sample-10BT": 10e9, "sample-100BT": 100e9}.items():
        source = open_source(DataConfig(source="fineweb-edu", subset=subset))
        assert 0.9 * SHARD_TOKENS < source.val_fraction * tokens < SHARD_TOKENS


def test_without_a_path_the_hub_is_streamed_and_with_one_local_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **more: calls.append((names, more)) or [{"text": "x"}])
    write_parquet_files(tmp_path)
    for config in (DataConfig(source=name, path=path) for path in ("", str(tmp_path)) for name in SOURCES):
        if config.source in ("openwebtext", "fineweb-edu"):
            assert documents_of(config, SourceStats()) == ["x"]
    streamed, local = {"split": "train", "streaming": True}, [str(tmp_path / f"{i}.parquet") for i in range(2)]
    assert calls == [
        (("Skylion007/openwebtext", None), streamed),
        (("HuggingFaceFW/fineweb-edu", "sample-10BT"), streamed),
        (("parquet",), streamed | {"data_files": local}),
        (("parquet",), streamed | {"data_files": local}),
    ]


def test_a_hub_that_fails_at_once_or_later_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*names, **options):
        raise ConnectionError("Couldn't reach the hub\nlong details")

    def break_off(*names, **options) -> Iterator[dict]:
        yield {"text": "one"}
        raise OSError("connection reset")

    for load_dataset, reason in [(refuse, "Couldn't reach the hub"), (break_off, "connection reset")]:
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(
            DataError, match=rf"openwebtext \(Hugging Face hub\): cannot be read: {reason}; run it again"
        ):
            documents_of(DataConfig(source="openwebtext"))


def test_a_missing_package_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", ["text"])
    for source, package in [("parquet", "pyarrow"), ("openwebtext", "datasets")]:
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] == package]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ConfigError, match=rf"{package} is not installed: pip install 'quillgpt\[data\]'"):
                documents_of(DataConfig(source=source, path=str(tmp_path)))


def test_shakespeare_is_split_where_nanogpt_splits_it(tmp_path: Path) -> None:
    if not SHARED_SHAKESPEARE.exists():
        pytest.skip(f"no copy of the text at {SHARED_SHAKESPEARE}")
    config = DataConfig(source="shakespeare", path=str(SHARED_SHAKESPEARE), tokenizer="character")
    prepare(config, vocab_size=0, out=tmp_path / "data")
    text = SHARED_SHAKESPEARE.read_text()
    train, val = (read_tokens(tmp_path / "data", split) for split in ("train", "val"))
    assert (len(train) - 1, len(val) - 1) == (1_003_854, 111_540)
    characters = sorted(set(text))
    assert val[:20] == [characters.index(x) for x in text[1_003_854:][:20]]


def test_another_file_in_place_of_shakespeare_or_no_network_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sonnets.txt").write_text("Shall I compare thee")
    with pytest.raises(DataError, match=r"not the Shakespeare file: .*; for other text use the source text"):
        open_source(DataConfig(source="shakespeare", path=str(tmp_path / "sonnets.txt")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shakespeare, "TINY_SHAKESPEARE", download("http://127.0.0.1:1/closed"))
    with pytest.raises(DataError, match=r"cannot be downloaded: .*refused"):
        open_source(DataConfig(source="shakespeare"))


CONTENT = b"All the world's a stage,\n" * 40
PAGES = {"/good": CONTENT, "/page": b"<html>Please log in</html>", "/long": CONTENT * 3, "/cut": CONTENT}


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT, also in the ways that downloads go wrong."""

    requests = 0

    def do_GET(self) -> None:
        Server.requests += 1
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/page")
            self.end_headers()
        else:
            content = PAGES[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def download(address: str) -> Download:
    return Download(url=address, sha256=hashlib.sha256(CONTENT).hexdigest(), bytes=len(CONTENT))


def test_a_file_is_downloaded_once_and_again_if_it_was_damaged(address: str, tmp_path: Path) -> None:
    before, path = Server.requests, tmp_path / "new" / "file"
    for _ in range(2):
        assert fetch(download(f"{address}/good"), path).read_bytes() == CONTENT
    assert Server.requests == before + 1
    path.write_bytes(CONTENT[:-1])
    assert fetch(download(f"{address}/good"), path).read_bytes() == CONTENT


def test_a_wrong_download_is_never_installed(address: str, tmp_path: Path) -> None:
    for page, message in {
        "missing": "cannot be downloaded: Not Found",
        "moved": "26 bytes with SHA-256",
        "page": "26 bytes with SHA-256 .*, expected 1,000 with",
        "long": "more than the expected 1,000 bytes",
        "cut": "IncompleteRead|500 bytes with SHA-256",
    }.items():
        with pytest.raises(DataError, match=rf"({message}).*--path FILE"):
            fetch(download(f"{address}/{page}"), tmp_path / "file")
        assert not list(tmp_path.iterdir()), page


def nanogpt_folder(folder: Path, train: list[int], val: list[int]) -> DataConfig:
    np.array(train, dtype="<u2").tofile(folder / "train.bin")
    np.array(val, dtype="<u2").tofile(folder / "val.bin")
    return byte_config("nanogpt", folder)


def test_nanogpt_ids_become_documents_of_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.data.sources.files.BLOCK_BYTES", 10)
    train = [*b"one", 256, *b"the second document", 256, 256, *b"no end"]
    config = nanogpt_folder(tmp_path, train, [*b"validation", 256])
    prepare(config, vocab_size=0, out=tmp_path / "data")
    dataset = TokenDataset.open(tmp_path / "data", "train")
    assert read_tokens(tmp_path / "data", "train") == train
    assert dataset.shards[0].document_ends.tolist() == [4, 24, 25, 31]
    assert dataset.text_bytes == len(b"onethe second documentno end")
    assert read_tokens(tmp_path / "data", "val") == [*b"validation", 256]
    with pytest.raises(ConfigError, match="has tokens, not text"):
        next(training_texts(config))


class Canary:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nanogpts_pickle_is_never_executed(tmp_path: Path) -> None:
    config = nanogpt_folder(tmp_path, [*b"some text", 256], [*b"val", 256])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    manifest = prepare(config, vocab_size=0, out=tmp_path / "data")
    assert not (tmp_path / "canary").exists()
    assert "meta.pkl was not opened (a pickle runs code when it is read)" in manifest.notes[0]
    pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert (tmp_path / "canary").exists()  # the test would have noticed


def test_exported_nanogpt_files_come_back_as_the_same_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in")
    prepare(byte_config("text", tmp_path / "in"), vocab_size=0, out=tmp_path / "data")
    write_nanogpt_files(tmp_path / "data")
    prepare(byte_config("nanogpt", tmp_path / "data"), vocab_size=0, out=tmp_path / "again")
    for split in ("train", "val"):
        first, second = (TokenDataset.open(tmp_path / name, split).shards[0] for name in ("data", "again"))
        assert first.tokens.tolist() == second.tokens.tolist()
        assert first.document_ends.tolist() == second.document_ends.tolist()
