"""Each source gives its documents as they are, in the same order every time."""

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

from quillgpt.config import DataConfig
from quillgpt.data import document, hub
from quillgpt.data.document import Tally, TokenSource
from quillgpt.data.download import Download, fetch
from quillgpt.data.prepare import prepare
from quillgpt.data.shard import SHARD_TOKENS
from quillgpt.data.sources import SOURCES, open_source, shakespeare, training_texts
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.errors import ConfigError, DataError
from quillgpt.tokenizer import load_tokenizer

SHARED_SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
TEXTS = ["First line.\r\nSecond\rthird\n", "naïve 敏捷 🙂\x00\ufeff", "", "  leading and trailing \n\n"]
TEXTS += [f"Document {i}.\n" for i in range(7)]


def write_parquet(path: Path, texts: list, field: str = "text", row_group: int = 3) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({field: texts, "id": list(range(len(texts)))})
    parquet.write_table(table, path, row_group_size=row_group)
    return path


def text_folder(folder: Path) -> DataConfig:
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02d}.txt").write_bytes(text.encode())
    return DataConfig(source="text", path=str(folder))


def jsonl_file(folder: Path) -> DataConfig:
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS)]
    (folder / "lines.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    return DataConfig(source="jsonl", path=str(folder))


def parquet_files(source: str) -> Callable[[Path], DataConfig]:
    def make(folder: Path) -> DataConfig:
        write_parquet(folder / "0.parquet", TEXTS[:4])
        write_parquet(folder / "1.parquet", TEXTS[4:])
        return DataConfig(source=source, path=str(folder))

    return make


LOCAL_SOURCES: dict[str, Callable[[Path], DataConfig]] = {
    "text": text_folder,
    "jsonl": jsonl_file,
    "parquet": parquet_files("parquet"),
    "openwebtext": parquet_files("openwebtext"),
    "fineweb-edu": parquet_files("fineweb-edu"),
}
OTHER_SOURCES = {"python", "shakespeare", "nanogpt"}  # their text is not ours to choose; tested one by one below


def documents_of(config: DataConfig) -> list[str]:
    source = open_source(config)
    assert not isinstance(source, TokenSource)
    return ["".join(blocks) for blocks in source.documents(Tally())]


def test_every_source_of_the_menu_is_tested_here() -> None:
    assert set(LOCAL_SOURCES) | OTHER_SOURCES == set(SOURCES)


@pytest.mark.parametrize("name", LOCAL_SOURCES)
def test_a_source_gives_every_document_as_it_stands(name: str, tmp_path: Path) -> None:
    assert documents_of(LOCAL_SOURCES[name](tmp_path)) == TEXTS


@pytest.mark.parametrize("name", [*LOCAL_SOURCES, "python"])
def test_a_source_gives_the_same_documents_again(name: str, tmp_path: Path) -> None:
    config = LOCAL_SOURCES[name](tmp_path) if name in LOCAL_SOURCES else DataConfig(source=name)
    source = open_source(config)
    passes = [[("".join(blocks)) for blocks in source.documents(Tally())] for _ in range(2)]
    assert passes[0] == passes[1] == documents_of(config)


@pytest.mark.parametrize("name", LOCAL_SOURCES)
def test_a_source_knows_about_how_large_it_is(name: str, tmp_path: Path) -> None:
    size = sum(len(text.encode()) for text in TEXTS)
    assert size / 2 < open_source(LOCAL_SOURCES[name](tmp_path)).text_bytes() < size * 5


@pytest.mark.parametrize("name", LOCAL_SOURCES)
def test_a_source_can_be_prepared_with_its_licence(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    config = LOCAL_SOURCES[name](tmp_path / "in")
    config = DataConfig(source=name, path=config.path, tokenizer="byte")
    prepare(config, vocab_size=0, out=tmp_path / "data")
    train = TokenDataset.open(tmp_path / "data", "train")
    assert train.source == name
    assert train.licence == open_source(config).licence
    assert train.text_bytes + TokenDataset.open(tmp_path / "data", "val").text_bytes == len("".join(TEXTS).encode())


def test_python_is_the_standard_library_without_tests_and_tables() -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"}
    expected = sorted(
        (path for path in folder.rglob("*.py") if not left_out & set(path.relative_to(folder).parts)),
        key=lambda path: path.as_posix(),
    )
    found = documents_of(DataConfig(source="python"))
    assert found == [path.read_bytes().decode() for path in expected]
    assert len(found) > 300
    assert any("class OrderedDict" in text for text in found)


def test_python_skips_and_names_a_file_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        (tmp_path / f"module{i}.py").write_text("import this\n" * 20)
    (tmp_path / "old.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    manifest = prepare(DataConfig(source="python", tokenizer="byte"), vocab_size=0, out=tmp_path / "data")
    assert manifest.notes == ["1 file was skipped because it is not UTF-8: old.py"]


def test_a_python_without_its_library_as_text_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"no Python standard library as \.py files"):
        open_source(DataConfig(source="python"))


@pytest.mark.parametrize(
    ("pattern", "expected"), [("*.txt", "ab"), ("**/*.txt", "abcd"), ("[a]*.txt", "a"), ("sub", "cd")]
)
def test_text_takes_globs_and_folders_in_a_fixed_order(pattern: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "sub/d.txt", "sub/c.txt", "sub/.hidden/x.txt"):
        (tmp_path / name).write_text(Path(name).stem)
    assert "".join(documents_of(DataConfig(source="text", path=str(tmp_path / pattern)))) == expected


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes[1].txt").write_text("found")
    assert documents_of(DataConfig(source="text", path=str(tmp_path / "notes[1].txt"))) == ["found"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    os.symlink(tmp_path / "in", tmp_path / "in" / "again")
    os.symlink(tmp_path / "in" / "a.txt", tmp_path / "in" / "b.txt")
    assert documents_of(DataConfig(source="text", path=str(tmp_path / "in"))) == ["a", "a"]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
def test_replaced_bytes_are_counted_wherever_blocks_end(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from quillgpt.data.text_files import decoded

    content = "é敏🙂\ufffd".encode() + b"\xff" + "🙂".encode()[:3] + b"a\xc3" + "ok é\ufffd".encode() + b"\xe6\x95"
    tally = Tally()
    blocks = [content[start : start + block] for start in range(0, len(content), block)]
    text = "".join(decoded(blocks, path=Path("x"), errors="replace", tally=tally))
    assert text == content.decode(errors="replace")
    assert tally.replacements == text.count("\ufffd") - 2  # two were in the text


@pytest.mark.parametrize("source", ["jsonl", "parquet", "openwebtext", "fineweb-edu"])
def test_the_field_of_the_text_can_be_chosen(source: str, tmp_path: Path) -> None:
    if source == "jsonl":
        (tmp_path / "a.jsonl").write_text('{"body": "found", "text": 3}\n')
    else:
        write_parquet(tmp_path / "a.parquet", ["found"], field="body")
    config = DataConfig(source=source, path=str(tmp_path), text_field="body")
    assert documents_of(config) == ["found"]


def test_jsonl_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "found"}\r\n')
    assert documents_of(DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"))) == ["found"]


def test_half_a_character_in_json_is_replaced_and_counted_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "whole \\ud83d\\ude42, half \\ud83d"}\n')
    tally = Tally()
    config = DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"), errors="replace")
    (blocks,) = open_source(config).documents(tally)
    assert "".join(blocks) == "whole 🙂, half \ufffd"
    assert tally.replacements == 1


def test_a_long_jsonl_text_is_given_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "PIECE_CHARACTERS", 10)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "0123456789" * 3 + "end"}))
    (blocks,) = open_source(DataConfig(source="jsonl", path=str(tmp_path))).documents(Tally())
    assert [len(block) for block in blocks] == [10, 10, 10, 3]


def test_fineweb_edu_holds_out_about_one_shard_of_tokens() -> None:
    for subset, tokens in {"sample-10BT": 10e9, "sample-100BT": 100e9}.items():
        source = open_source(DataConfig(source="fineweb-edu", subset=subset))
        assert 0.9 * SHARD_TOKENS < source.held_out_fraction * tokens < SHARD_TOKENS


def test_openwebtext_holds_out_what_nanogpt_does() -> None:
    assert open_source(DataConfig(source="openwebtext")).held_out_fraction == 0.0005


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openwebtext", ("Skylion007/openwebtext", None)),
        ("fineweb-edu", ("HuggingFaceFW/fineweb-edu", "sample-10BT")),
    ],
)
def test_without_a_path_the_hub_is_streamed(
    source: str, expected: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        return iter([{"text": "from the hub"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents_of(DataConfig(source=source)) == ["from the hub"]
    assert calls == [(expected, {"split": "train", "streaming": True})]


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*names, **options):
        raise ConnectionError("Couldn't reach the hub\nlong details")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hub\): cannot be read: Couldn't reach the hub; run it again to continue, or"):
        documents_of(DataConfig(source="openwebtext"))


def test_a_hub_that_breaks_off_in_the_middle_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def rows(*names, **options) -> Iterator[dict]:
        yield {"text": "one"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    with pytest.raises(DataError, match="connection reset"):
        documents_of(DataConfig(source="openwebtext"))


@pytest.mark.parametrize(("source", "package"), [("parquet", "pyarrow"), ("openwebtext", "datasets")])
def test_a_missing_package_names_the_command_that_installs_it(
    source: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", ["text"])
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}, which is missing: pip install 'quillgpt\[data\]'"):
        documents_of(DataConfig(source=source, path=str(tmp_path)))


def test_shakespeare_is_split_where_nanogpt_splits_it(tmp_path: Path) -> None:
    if not SHARED_SHAKESPEARE.exists():
        pytest.skip(f"no copy of the text at {SHARED_SHAKESPEARE}")
    config = DataConfig(source="shakespeare", path=str(SHARED_SHAKESPEARE), tokenizer="character")
    prepare(config, vocab_size=0, out=tmp_path / "data")
    text = SHARED_SHAKESPEARE.read_text()
    train, val = (TokenDataset.open(tmp_path / "data", split) for split in ("train", "val"))
    assert (train.token_count - 1, val.token_count - 1) == (1_003_854, 111_540)
    characters = sorted(set(text))
    assert val.shards[0].tokens[:20].tolist() == [characters.index(x) for x in text[1_003_854:][:20]]


def test_another_file_in_place_of_shakespeare_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sonnets.txt").write_text("Shall I compare thee")
    with pytest.raises(DataError, match=r"not the Shakespeare file: .*; for other text use the source text"):
        open_source(DataConfig(source="shakespeare", path=str(tmp_path / "sonnets.txt")))


CONTENT = b"All the world's a stage,\n" * 40


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT in the ways that downloads go wrong."""

    requests = 0

    def do_GET(self) -> None:
        Server.requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/page")
            self.end_headers()
            return
        content = b"<html>Please log in</html>" if self.path == "/page" else CONTENT
        content = CONTENT * 3 if self.path == "/long" else content
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


def test_a_download_is_fetched_once(address: str, tmp_path: Path) -> None:
    before = Server.requests
    for _ in range(2):
        assert fetch(download(f"{address}/good"), tmp_path / "new" / "file").read_bytes() == CONTENT
    assert Server.requests == before + 1


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("missing", "cannot be downloaded: Not Found"),
        ("moved", "26 bytes with SHA-256"),
        ("page", "26 bytes with SHA-256 .*, expected 1,000 with"),
        ("long", "more than the expected 1,000 bytes"),
        ("cut", "IncompleteRead|500 bytes with SHA-256"),
    ],
)
def test_a_wrong_download_is_never_installed(page: str, message: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        fetch(download(f"{address}/{page}"), tmp_path / "file")
    assert "--path FILE" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_fetched_again(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    fetch(download(f"{address}/good"), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_no_network_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = download("http://127.0.0.1:1/closed")
    monkeypatch.setattr(shakespeare, "TINY_SHAKESPEARE", nowhere)
    with pytest.raises(DataError, match=r"cannot be downloaded: .*refused"):
        open_source(DataConfig(source="shakespeare"))


def nanogpt_folder(folder: Path, train: list[int], val: list[int]) -> DataConfig:
    np.array(train, dtype="<u2").tofile(folder / "train.bin")
    np.array(val, dtype="<u2").tofile(folder / "val.bin")
    return DataConfig(source="nanogpt", path=str(folder), tokenizer="byte")


def test_nanogpt_ids_become_documents_of_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.data.text_files.BLOCK_BYTES", 10)
    train = [*b"one", 256, *b"the second document", 256, 256, *b"no end"]
    config = nanogpt_folder(tmp_path, train, [*b"held out", 256])
    prepare(config, vocab_size=0, out=tmp_path / "data")
    dataset = TokenDataset.open(tmp_path / "data", "train")
    (shard,) = dataset.shards
    assert shard.tokens.tolist() == train
    assert shard.document_ends.tolist() == [4, 24, 25, 31]
    assert dataset.text_bytes == len(b"onethe second documentno end")
    assert TokenDataset.open(tmp_path / "data", "val").shards[0].tokens.tolist() == [*b"held out", 256]


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


def test_nothing_can_be_learned_from_tokens(tmp_path: Path) -> None:
    config = nanogpt_folder(tmp_path, [1, 2], [3, 4])
    with pytest.raises(ConfigError, match="has tokens, not text"):
        next(training_texts(config))


def test_quills_nanogpt_files_come_back_as_the_same_shards(tmp_path: Path) -> None:
    from quillgpt.data.nanogpt_files import write_nanogpt_files

    (tmp_path / "in").mkdir()
    config = LOCAL_SOURCES["text"](tmp_path / "in")
    there = DataConfig(source="text", path=config.path, tokenizer="byte")
    prepare(there, vocab_size=0, out=tmp_path / "data")
    write_nanogpt_files(tmp_path / "data")
    back = DataConfig(source="nanogpt", path=str(tmp_path / "data"), tokenizer="byte")
    prepare(back, vocab_size=0, out=tmp_path / "again")
    for split in ("train", "val"):
        first, second = (TokenDataset.open(tmp_path / name, split).shards[0] for name in ("data", "again"))
        assert first.tokens.tolist() == second.tokens.tolist()
        assert first.document_ends.tolist() == second.document_ends.tolist()


def test_the_hub_data_streams_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    real, calls = datasets.load_dataset, []

    def load_dataset(*names, **options):
        calls.append(options)
        return real(*names, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = LOCAL_SOURCES["openwebtext"](tmp_path)
    assert documents_of(config) == TEXTS
    assert calls[0]["streaming"] is True
    assert hub.HubData(name="x", subset="", files=[], field="text").place == "x (Hugging Face hub)"


def test_the_byte_tokenizer_ends_documents_with_256() -> None:
    assert load_tokenizer("byte").end_of_text == 256
