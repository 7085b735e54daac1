"""Every exporter: what is written is the model, appears whole or not at all, and says so in one line when it cannot."""

import contextlib
import errno
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fault_injection import FAILURES, KILLED, LASTING, exit_code_of_fork, failing
from quillgpt.cli import main as command_line
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, DiskError, ExportError
from quillgpt.export import EXPORTERS
from quillgpt.export.checked import RECORD, check_place, export, origin_of, probes
from quillgpt.export.format import Format, Origin, Written
from quillgpt.files import TEMPORARY_PREFIX
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer

QUICK = [(name, dtype) for name, entry in EXPORTERS.items() for dtype in entry.dtypes if name != "onnx"]
every_quick_format = pytest.mark.parametrize(("name", "dtype"), QUICK, ids=[f"{n}-{d}" for n, d in QUICK])
"""onnx takes seconds each time; its own file exports once for all its tests"""


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX))


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_entry_states_what_it_can_write_and_how_exact_it_is(name: str) -> None:
    form: Format = importlib.import_module(EXPORTERS[name].module).FORMAT
    assert form.tolerance.keys() == set(EXPORTERS[name].dtypes)
    assert form.tolerance["f32"] <= 1e-5


@every_quick_format
def test_what_is_read_back_has_the_models_logits(
    name: str, dtype: str, random_run: Callable[..., Path], random_model: Callable[..., GPT], tmp_path: Path, tokens
) -> None:
    done = export(str(random_run()), name, out=str(tmp_path / "out"), dtype=dtype)

    written: Written = importlib.import_module(EXPORTERS[name].module).FORMAT.read(tmp_path / "out")
    with torch.no_grad():
        expected, got = random_model()(tokens), written.logits(tokens)
    assert (got - expected).abs().max() <= done.tolerance * expected.abs().max()
    assert 0 < done.difference <= done.tolerance
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["exporter"], record["dtype"], record["run"], record["step"]) == (name, dtype, "random", 7)
    assert record["bytes"] == done.sizes
    assert visible(tmp_path / "out") == sorted([*done.sizes, RECORD])


def test_probes_cover_one_token_short_rows_and_the_whole_context() -> None:
    batches = probes(ModelConfig(context_length=24, vocab_size=257), end_of_text=256)
    assert [tuple(batch.shape) for batch in batches] == [(1, 1), (1, 24), (2, 7)]
    assert int(batches[0]) == 256
    assert [tuple(batch.shape) for batch in probes(ModelConfig(context_length=1), 0)] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("name", ["huggingface", "gguf"])
def test_a_model_that_reads_back_differently_is_refused_and_nothing_appears(
    name: str, random_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(EXPORTERS[name].module)
    original = module.gpt2_tensors
    largest = "transformer.h.1.mlp.c_fc.bias"
    monkeypatch.setattr(module, "gpt2_tensors", lambda model: original(model) | {largest: original(model)[largest] + 1})

    with pytest.raises(ExportError, match="read back") as raised:
        export(str(random_run()), name, out=str(tmp_path / "out"))

    assert raised.value.exit_code == 65
    assert visible(tmp_path) == ["runs"]
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_weights_that_are_not_finite_are_refused(random_run: Callable[..., Path], tmp_path: Path) -> None:
    run = random_run()
    import safetensors.torch

    path = run / "checkpoints" / "step-000007" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["final_norm.bias"][0] = float("nan")
    content = safetensors.torch.save(tensors)
    path.write_bytes(content)
    manifest = path.parent / "manifest.json"
    import hashlib

    record = json.loads(manifest.read_text())
    record["files"]["model.safetensors"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(record))

    with pytest.raises(ExportError, match="NaN or infinite"):
        export(str(run), "huggingface", out=str(tmp_path / "out"))
    assert visible(tmp_path) == ["runs"]


class TestPlace:
    """Where an export goes, with a format of two small files that is quick to write."""

    @pytest.fixture(autouse=True)
    def quick_format(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import quillgpt.export.huggingface as entry

        monkeypatch.setattr(entry, "FORMAT", quick_form())

    def test_nothing_is_overwritten_without_force(self, random_run: Callable[..., Path], tmp_path: Path) -> None:
        run, out = str(random_run()), tmp_path / "out"
        export(run, "huggingface", out=str(out))
        (out / "mine.txt").write_text("kept")
        with pytest.raises(ConfigError, match="exists"):
            export(run, "huggingface", out=str(out))
        assert (out / "mine.txt").read_text() == "kept"

    def test_force_replaces_an_export_and_nothing_else(self, random_run: Callable[..., Path], tmp_path: Path) -> None:
        run, out = str(random_run()), tmp_path / "out"
        export(run, "huggingface", out=str(out))
        (out / "old.txt").write_text("old")
        export(run, "huggingface", out=str(out), force=True)
        assert not (out / "old.txt").exists()
        assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))

        other = tmp_path / "other"
        other.mkdir()
        (other / "thesis.tex").write_text("years of work")
        with pytest.raises(ConfigError, match="not made by `quill export`"):
            export(run, "huggingface", out=str(other), force=True)
        with pytest.raises(ConfigError, match="not made by `quill export`"):
            export(run, "huggingface", out=str(other / "thesis.tex"), force=True)
        assert (other / "thesis.tex").read_text() == "years of work"

    def test_a_failed_replacement_leaves_the_old_export(
        self, random_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, out = str(random_run()), tmp_path / "out"
        export(run, "huggingface", out=str(out))
        before = contents(out)
        import quillgpt.export.huggingface as entry

        for failure in (KeyboardInterrupt(), ExportError("wrong"), OSError(errno.ENOSPC, "full")):
            monkeypatch.setattr(entry, "FORMAT", quick_form(failure))
            with pytest.raises((KeyboardInterrupt, ExportError, DiskError)):
                export(run, "huggingface", out=str(out), force=True)
            assert contents(out) == before
            assert visible(tmp_path) == ["out", "runs"]

    @pytest.mark.parametrize("failure", FAILURES)
    def test_a_failing_disk_leaves_the_old_or_the_new_export(
        self, failure: str, random_run: Callable[..., Path], tmp_path: Path
    ) -> None:
        run, out = str(random_run()), tmp_path / "out"
        export(run, "huggingface", out=str(out))
        before = contents(out)
        for at in range(1, 100):
            with pytest.MonkeyPatch.context() as patch:
                disk = failing(patch, failure, at)
                with contextlib.suppress(DiskError):
                    export(run, "huggingface", out=str(out), force=True)
            is_at_its_place = out.exists() or failure not in LASTING  # then it could not even be put back
            place = out if is_at_its_place else next(tmp_path.glob("out.replaced-*"))
            assert contents(place) == before, f"operation {at}, {disk.failed_at}"
            place.rename(out)
            if not disk.failed_at:
                return
        pytest.fail("the export has more operations than expected")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_killed_at_any_operation_it_is_whole_or_not_there(
        self, random_run: Callable[..., Path], tmp_path: Path
    ) -> None:
        run, out = str(random_run()), tmp_path / "out"
        for at in range(1, 100):
            code = exit_code_of_fork(lambda: export(run, "huggingface", out=str(out)), at)
            assert not out.exists() or sorted(contents(out)) == ["a.txt", "b.txt", RECORD]
            if out.exists():
                break
            assert code == KILLED
        assert at > 8
        export(run, "huggingface", out=str(out), force=True)
        assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))  # what the kills left is gone

    def test_the_place_is_named_after_run_and_format(
        self, random_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert export(str(random_run()), "huggingface").path == Path("exports/random-huggingface")
        assert sorted(contents(Path("exports/random-huggingface"))) == ["a.txt", "b.txt", RECORD]

    def test_an_empty_directory_may_be_filled(self, random_run: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        export(str(random_run()), "huggingface", out=str(tmp_path / "out"))
        assert (tmp_path / "out" / RECORD).exists()


def quick_form(failure: BaseException | None = None) -> Format:
    """A format of two files that holds the model in memory; it fails after the first where it is told to."""
    held: list[tuple[GPT, Tokenizer]] = []

    def write(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> None:
        from quillgpt.export.tokenizer_files import write as write_file

        held.append((model, tokenizer))
        write_file(folder / "a.txt", "a")
        if failure is not None:
            raise failure
        write_file(folder / "b.txt", "b" * 100)

    def read(folder: Path) -> Written:
        model, tokenizer = held.pop()
        return Written(logits=model, encode=tokenizer.encode, ends={tokenizer.end_of_text})

    return Format(
        refuse=lambda config, tokenizer, dtype: None,
        write=write,
        read=read,
        describe=lambda config: "a test",
        usage=lambda config, dtype, path: "",
        tolerance={"f32": 0.0},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("what", ["tokenizer", "end of text"])
def test_a_tokenizer_that_reads_back_differently_is_refused(
    what: str, random_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    import quillgpt.export.huggingface as entry

    form = quick_form()

    def read(folder: Path) -> Written:
        written = form.read(folder)
        if what == "tokenizer":
            return dataclasses.replace(written, encode=lambda text: written.encode(text.strip()))
        return dataclasses.replace(written, ends={256, 0})

    monkeypatch.setattr(entry, "FORMAT", dataclasses.replace(form, read=read))
    with pytest.raises(ExportError, match="cuts text differently" if what == "tokenizer" else "token 0 ends a text"):
        export(str(random_run()), "huggingface", out=str(tmp_path / "out"))
    assert visible(tmp_path) == ["runs"]


def test_origins(random_run: Callable[..., Path], tmp_path: Path) -> None:
    run = random_run()
    assert origin_of(str(run / "checkpoints" / "step-000007")) == Origin(name="random", step=7)
    assert origin_of("gpt2") == Origin(name="gpt2", step=None)


def test_a_place_that_is_free() -> None:
    check_place(Path("does/not/exist"), may_replace=False)


class TestCommand:
    """`quill export` as it is typed."""

    def run(self, *words: str) -> int:
        return command_line.run(["export", *words])

    def test_it_says_what_was_written_how_far_it_is_off_and_how_to_load_it(
        self, random_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert self.run(str(random_run()), "gguf", "--dtype", "q8_0", "--out", str(out)) == 0
        said = capsys.readouterr()
        assert said.err == f"writing {out}, then reading it back ...\n"
        assert f"{out}: llama.cpp's gpt2, q8_0\n" in said.out
        assert "  model-q8_0.gguf" in said.out
        assert "of the largest (accepted: 5e-2)" in said.out
        namespace: dict[str, object] = {}
        exec(said.out.split("\n\n")[-1], namespace)  # the three lines work as they stand
        assert namespace["model"].config.n_embd == 32

    def test_help_is_quick_and_needs_no_torch(self) -> None:
        import subprocess

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

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "say which run and which format"),
            (["RUN"], "say which run and which format"),
            (["gguf", "RUN"], "in this order: `quill export RUN huggingface|gguf|onnx`"),
            (["RUN", "hugingface"], "did you mean huggingface?"),
            (["RUN", "gguf", "--dtype", "q4"], "gguf: dtype = 'q4' does not exist"),
            (["RUN", "onnx", "--dtype", "f16"], "onnx: dtype = 'f16' does not exist"),
            (["RUN", "gguf", "--ouut", "x"], "no flag --ouut"),
        ],
    )
    def test_a_mistake_is_one_line(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError) as raised:
            self.run(*words)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", EXPORTERS)
    def test_a_missing_package_names_the_extra(
        self, name: str, random_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = importlib.util.find_spec
        missing = EXPORTERS[name].packages[0]
        monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == missing else found(wanted))
        with pytest.raises(ConfigError, match=rf"needs the package {missing}: pip install 'quillgpt\[export\]'"):
            self.run(str(random_run()), name)
