"""Every exporter: what is written is the model, appears complete or not at all, and errors are one line."""

import contextlib
import dataclasses
import errno
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import quillgpt.export.huggingface as huggingface
from fault_injection import FAILURES, KILLED, LASTING, exit_code_of_fork, failing
from quillgpt import files
from quillgpt.cli import main as command_line
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, DiskError, ExportError
from quillgpt.export import EXPORTERS, Format, Origin, Written, quiet
from quillgpt.export.export import RECORD, check_place, export, origin_of, probes
from quillgpt.files import TEMPORARY_PREFIX
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_read_back_has_the_models_logits(
    random_run: Callable[..., str],
    random_model: Callable[..., GPT],
    tmp_path: Path,
    tokens: torch.Tensor,
    difference: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    cases = [(name, dtype, {}) for name in ("huggingface", "gguf") for dtype in EXPORTERS[name].tolerance]
    for name, dtype, settings in [*cases, ("huggingface", "f32", {"norm": "rmsnorm"})]:  # onnx: in its own file
        done = export(random_run(**settings), name, out=str(tmp_path / "out"), dtype=dtype, force=True)
        written: Written = importlib.import_module(EXPORTERS[name].module).FORMAT.read(tmp_path / "out")
        with torch.no_grad():
            assert difference(written.logits(tokens), random_model(**settings)(tokens)) <= done.tolerance
        assert done.difference <= done.tolerance == EXPORTERS[name].tolerance[dtype]
        assert done.difference > 0 or settings  # our own code may compute the same bits
        record = json.loads((tmp_path / "out" / RECORD).read_text())
        assert (record["exporter"], record["dtype"], record["run"], record["step"]) == (name, dtype, "random", 7)
        assert record["bytes"] == done.sizes
        assert names(tmp_path / "out") == sorted([*done.sizes, RECORD])
        assert all((tmp_path / "out" / file).is_file() for file in done.sizes)  # no __pycache__
    assert max(exporter.tolerance["f32"] for exporter in EXPORTERS.values()) <= 1e-5


def test_probes_cover_one_token_short_sequences_and_the_entire_context() -> None:
    batches = probes(ModelConfig(context_length=24, vocab_size=257), end_of_text=256)
    assert [tuple(batch.shape) for batch in batches] == [(1, 1), (1, 24), (2, 7)]
    assert int(batches[0]) == 256
    assert [tuple(batch.shape) for batch in probes(ModelConfig(context_length=1), 0)] == [(1, 1), (2, 1)]


def test_a_model_that_reads_back_differently_is_refused_and_nothing_appears(
    random_run: Callable[..., str], tmp_path: Path
) -> None:
    run, changed = random_run(), "transformer.h.1.mlp.c_fc.bias"
    for name in ("huggingface", "gguf"):
        module = importlib.import_module(EXPORTERS[name].module)
        original = module.gpt2_tensors
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "gpt2_tensors", lambda x, get=original: get(x) | {changed: get(x)[changed] + 1})
            with pytest.raises(ExportError, match="read back") as raised:
                export(run, name, out=str(tmp_path / "out"))
        assert raised.value.exit_code == 65
        assert names(tmp_path) == ["runs"]


def test_weights_that_are_not_finite_are_refused(random_run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="NaN or infinite"):
        export(random_run(damage="final_norm.bias"), "huggingface", out=str(tmp_path / "out"))
    assert names(tmp_path) == ["runs"]


def quick_format(failure: BaseException | None = None, **changes: object) -> Format:
    """A format of two files that keeps the model in memory; it raises `failure` after the first file."""
    held: list[tuple[GPT, Tokenizer]] = []

    def write(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> str:
        held.append((model, tokenizer))
        for name in ("a.txt", "b.txt"):
            with files.written_file(folder / name) as file:
                file.write(name.encode() * 50)
            if failure is not None:
                raise failure
        return "a test"

    def read(folder: Path) -> Written:
        model, tokenizer = held.pop()
        written = Written(logits=model, encode=tokenizer.encode, ends={tokenizer.end_of_text})
        return dataclasses.replace(written, **changes)

    return Format(write=write, read=read, usage=lambda config, dtype, path: "")


class TestPlace:
    """Where an export goes, with a format that is quick to write."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface, "FORMAT", quick_format())
        exact = dataclasses.replace(EXPORTERS["huggingface"], tolerance={"f32": 0.0})
        monkeypatch.setitem(EXPORTERS, "huggingface", exact)

    @pytest.fixture
    def run(self, random_run: Callable[..., str]) -> str:
        return random_run()

    def test_only_force_replaces_and_only_an_export(self, run: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()  # an empty directory is filled
        export(run, "huggingface", out=str(out))
        (out / "mine.txt").write_text("kept")
        with pytest.raises(ConfigError, match="exists"):
            export(run, "huggingface", out=str(out))
        assert (out / "mine.txt").read_text() == "kept"
        export(run, "huggingface", out=str(out), force=True)
        assert names(out) == ["a.txt", "b.txt", RECORD]
        assert names(tmp_path) == ["out", "runs"]

        other = tmp_path / "other"
        other.mkdir()
        (other / "thesis.tex").write_text("years of work")
        for place in (other, other / "thesis.tex"):
            with pytest.raises(ConfigError, match="not made by `quill export`"):
                export(run, "huggingface", out=str(place), force=True)
        assert (other / "thesis.tex").read_text() == "years of work"
        check_place(Path("does/not/exist"), may_replace=False)

    def test_a_failed_replacement_keeps_the_old_export(
        self, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        export(run, "huggingface", out=str(out))
        before = contents(out)
        for failure in (KeyboardInterrupt(), ExportError("wrong"), OSError(errno.ENOSPC, "full")):
            monkeypatch.setattr(huggingface, "FORMAT", quick_format(failure))
            with pytest.raises((KeyboardInterrupt, ExportError, DiskError)):
                export(run, "huggingface", out=str(out), force=True)
            assert contents(out) == before
            assert names(tmp_path) == ["out", "runs"]

    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_failing_disk_leaves_the_old_or_the_new_export(self, failure: str, run: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        export(run, "huggingface", out=str(out))
        before = contents(out)
        for at in range(1, 100):
            with pytest.MonkeyPatch.context() as patch:
                disk = failing(patch, failure, at)
                with contextlib.suppress(DiskError):
                    export(run, "huggingface", out=str(out), force=True)
            is_in_place = out.exists() or failure not in LASTING  # otherwise it could not even be moved back
            place = out if is_in_place else next(tmp_path.glob("out.replaced-*"))
            assert contents(place) == before, f"operation {at}, {disk.failed_at}"
            place.rename(out)
            if not disk.failed_at:
                return
        pytest.fail("the export has more operations than expected")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_killed_at_any_operation_it_is_complete_or_absent(self, run: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        for at in range(1, 100):
            code = exit_code_of_fork(lambda: export(run, "huggingface", out=str(out)), at)
            if out.exists():
                assert names(out) == ["a.txt", "b.txt", RECORD]
                break
            assert code == KILLED
        assert at > 8
        export(run, "huggingface", out=str(out), force=True)
        assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))  # the remains of killed exports

    def test_the_directory_is_named_after_run_and_format(
        self, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert export(run, "huggingface").path == Path("exports/random-huggingface")
        assert names(Path("exports/random-huggingface")) == ["a.txt", "b.txt", RECORD]
        assert origin_of(f"{run}/checkpoints/step-000007") == Origin(name="random", step=7)
        assert origin_of("gpt2") == Origin(name="gpt2", step=None)

    def test_a_tokenizer_that_reads_back_differently_is_refused(
        self, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
    ) -> None:
        wrong = {
            "encodes text differently": {"encode": lambda text: byte_tokenizer.encode(text.strip())},
            "token 0 ends a text": {"ends": {256, 0}},
        }
        for message, changes in wrong.items():
            monkeypatch.setattr(huggingface, "FORMAT", quick_format(**changes))
            with pytest.raises(ExportError, match=message):
                export(run, "huggingface", out=str(tmp_path / "out"))
            assert names(tmp_path) == ["runs"]


def test_the_command_reports_files_difference_and_code_that_works(
    random_run: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command_line.run(["export", random_run(), "gguf", "--dtype", "q8_0", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"writing {out}, then reading it back ...\n"
    assert f"{out}: llama.cpp's gpt2, q8_0\n" in printed.out
    assert "  model-q8_0.gguf" in printed.out
    assert "of the largest (accepted: 5e-2)" in printed.out
    namespace: dict[str, object] = {}
    exec(printed.out.split("\n\n")[-1], namespace)
    assert namespace["model"].config.n_embd == 32


def test_help_lists_the_formats_and_imports_no_torch() -> None:
    script = (
        "import sys\nfrom quillgpt.cli.main import run\n"
        "try: run(['export', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'gguf', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    for name, entry in EXPORTERS.items():
        assert name in done.stdout
        assert entry.meaning[:30] in done.stdout


def test_a_mistake_is_one_line(random_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = {
        "": "export needs a run and a format",
        "RUN": "export needs a run and a format",
        "gguf RUN": "in this order: `quill export RUN huggingface|gguf|onnx`",
        "RUN hugingface": "did you mean huggingface?",
        "RUN gguf --dtype q4": "invalid gguf dtype: 'q4'",
        "RUN onnx --dtype f16": "invalid onnx dtype: 'f16'",
        "RUN gguf --ouut x": "no flag --ouut",
    }
    run = random_run()
    for words, message in mistakes.items():
        with pytest.raises(ConfigError) as raised:
            command_line.run(["export", *words.split()])
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    find_spec = importlib.util.find_spec
    for name, entry in EXPORTERS.items():
        for missing in entry.packages:
            monkeypatch.setattr(importlib.util, "find_spec", lambda x, it=missing: None if x == it else find_spec(x))
            with pytest.raises(ConfigError, match=rf"needs the package {missing}: pip install 'quillgpt\[export\]'"):
                command_line.run(["export", run, name])


def test_quiet_hides_messages_only_inside_the_block(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet():
        print("out")
        print("err", file=sys.stderr)
        warnings.warn("advice", stacklevel=1)
        logging.getLogger("any").error("chatter")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    logging.getLogger("any").error("heard")
    assert [record.message for record in caplog.records] == ["heard"]
    with pytest.warns(UserWarning, match="advice"):
        warnings.warn("advice", stacklevel=1)
