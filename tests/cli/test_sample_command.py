"""`quill sample`: what it writes where, and one line for every mistake."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.cli import main as command_line
from quillgpt.cli.sample import main, visible
from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory
from quillgpt.sample.engine import generate
from quillgpt.sample.settings import LIMITS, MAX_PROMPT_BYTES
from quillgpt.tokenizer import load_tokenizer

CONTEXT_LENGTH = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": CONTEXT_LENGTH, "vocab_size": 257}
    return GPT(ModelConfig(**shape)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("byte")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, model, tokenizer):
    """The current directory of the command, with one run in runs/."""
    save_run(tmp_path / "runs" / "tiny", model, tokenizer)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_run(path, model, tokenizer):
    parts = {"state": {}, "runtime": {}, "config_toml": "", "data_fingerprint": "none", "val_loss": None}
    optimizer_state = {"step": torch.ones(1)}
    checkpoint.save(
        RunDirectory(path), step=1, model=model, optimizer_state=optimizer_state, tokenizer=tokenizer, **parts
    )


@pytest.fixture
def written(capsys):
    """Run the command in this process; return what it wrote on standard output and standard error."""

    def run(*arguments):
        assert main(list(arguments)) == 0
        return tuple(capsys.readouterr())

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the entire command line; return its exit code and the one line that it wrote on standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["quill", "sample", *arguments])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        out, err = capsys.readouterr()
        assert err.startswith("quill: ")
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        return stopped.value.code, out, err

    return run


INVALID = {
    "temperature": ["--temperature=-1", "--temperature=nan", "--temperature=1e999", "--temperature=2.01"],
    "top_k": ["--top-k=-1"],
    "top_p": ["--top-p=0", "--top_p=1.5", "--top-p=nan"],
    "max_new_tokens": ["-m|0", "--max_new_tokens=1000000000"],
    "num_samples": ["--num_samples=0", "--num-samples=1000000"],
    "seed": ["--seed=-1", f"--seed={2**63}"],
    "stop": ["--stop=", "--stop=" + "x" * 2000, "--stop=\udcff"],
}
MISTAKES = [
    (["--temperature", "warm"], "temperature"),
    (["--top-k", "1.5"], "top-k"),
    (["--seed", "9" * 5000], "seed"),
    (["--top-q", "3"], "did you mean --top-p?"),
    (["-p"], "-p"),
    (["-p", "\udcff"], "not valid UTF-8"),
    (["-p", "x" * (MAX_PROMPT_BYTES + 1)], "too long"),
    (["-p", "FILE:nothing.txt"], "nothing.txt': cannot be read: No such file"),
    (["-p", "FILE:."], "directory"),
    (["-p", "FILE:two\nlines"], "No such file"),
    (["-p", "FILE:"], "directory"),
    (["-p", "FILE:a\0b"], "null byte"),
    (["--device", "tpu"], "cpu, cuda, cuda:N, mps"),
    (["--device=cuda:99"], "cuda:99"),
    (["--dtype", "fp8"], "bf16"),
    (["--quantize", "int3"], "choose one of: none, int8, int4"),
    (["--quantize"], "--quantize needs a value"),
    (["--quantize", "int8", "--compile"], "leave out one of the two"),
    (["--compile=perhaps"], "must be true or false"),
    (["--out_dir=runs/other"], "name different models"),
    (["--init_from=gpt2"], "name different models"),
    (["--untrained", "debug"], "name different models"),
    (["more", "words"], "more"),
]


def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(monkeypatch, refused):
    cases = [(["runs/tiny", *arguments], words) for arguments, words in MISTAKES]
    cases.append((["--untrained", "debgu"], "did you mean debug?"))
    found = [(words, refused(*arguments)) for arguments, words in cases]
    assert [(words, case) for words, case in found if words not in case[2] or case[:2] != (2, "")] == []
    monkeypatch.setattr(checkpoint, "load_model", None)  # settings and prompts are checked before a model is loaded
    for name, flags in INVALID.items():
        for flag in flags:
            code, out, line = refused("runs/tiny", *flag.split("|"))
            assert (code, out) == (2, "")
            assert f"invalid {name}: " in line
            assert LIMITS[name] in line
    for prompt in ("\udcff", "x" * (MAX_PROMPT_BYTES + 1)):
        code, _, line = refused("runs/nothing", "-p", prompt)
        assert code == 2
        assert "prompt" in line


def test_unusable_files_are_one_line_with_their_exit_code(monkeypatch, refused, folder, tokenizer):
    for where in ("runs/nothing", "runs", "/dev/null"):
        assert refused(where)[:2] == (65, "")
    (folder / "prompt.txt").write_bytes(b"caf\xe9")
    code, out, line = refused("-p", "FILE:prompt.txt")
    assert (code, out) == (65, "")
    assert "prompt.txt" in line
    assert "byte 0xe9 at offset 3" in line
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)  # refused without reading it all
    code, _, line = refused("-p", "FILE:huge.txt")
    assert code == 2
    assert "at most 1,000,000 bytes" in line
    endless = SimpleNamespace(buffer=SimpleNamespace(read=lambda size: b"x" * size))
    for stdin in (endless, None):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert refused("-p", "-")[0] == 2
    damaged = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, context_length=4, vocab_size=257))
    with torch.no_grad():
        damaged.final_norm.weight.fill_(torch.nan)
    save_run(folder / "runs" / "damaged", damaged, tokenizer)
    assert refused("runs/damaged", "-p", "x")[0] == 70


def test_without_a_compiler_compile_is_one_line(monkeypatch, refused):
    monkeypatch.setattr("quillgpt.runtime._has_compiler", lambda: False)
    code, _, line = refused("runs/tiny", "--compile")
    assert code == 2
    assert "install g++" in line


def test_the_text_is_the_prompt_and_its_continuation(written, model, tokenizer):
    flags = "-m 30 --temperature 0.9 --top-k 40 --top-p 0.95 --seed 7"
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    expected = generate(model, tokenizer, "def ", **options)[0]
    assert written("runs/tiny", "-p", "def ", *flags.split()) == ("def " + expected + "\n", "")


def test_several_samples_are_separated_by_lines(written, model, tokenizer):
    texts = generate(model, tokenizer, "ab", max_new_tokens=10, num_samples=3)
    expected = "".join(f"--- sample {number} of 3 ---\nab{text}\n" for number, text in enumerate(texts, start=1))
    assert written("runs/tiny", "-p", "ab", "-m", "10", "--num-samples", "3")[0] == expected


def test_the_model_is_the_newest_run_a_run_or_a_checkpoint(written, model, tokenizer):
    expected = generate(model, tokenizer, max_new_tokens=10)[0] + "\n"
    assert written("-m", "10") == (expected, "the newest run: runs/tiny\n")
    assert written("runs/tiny", "-m", "10") == (expected, "")
    flags = "-m 10 --dtype fp32 --quantize none"  # the defaults on a CPU
    assert written("runs/tiny/checkpoints/step-000001", *flags.split()) == (expected, "")


def test_a_prompt_can_come_from_a_file_or_standard_input_byte_for_byte(monkeypatch, written, folder):
    prompt = "a\r\nb\0é\n"
    (folder / "prompt.txt").write_bytes(prompt.encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(prompt.encode())))
    texts = [written("runs/tiny", "-p", argument, "-m", "10")[0] for argument in (prompt, "FILE:prompt.txt", "-")]
    assert texts[0].startswith(prompt)
    assert texts == [texts[0]] * 3


def test_stop_strings_may_be_given_several_times(written, model, tokenizer):
    text = generate(model, tokenizer, "ab", max_new_tokens=60)[0]
    stops = [text[20:22], text[8:10]]
    flags = ["-p", "ab", "-m", "60", "--stop", stops[0], "--stop", stops[1]]
    assert written("runs/tiny", *flags)[0] == "ab" + text[: min(map(text.index, stops))] + "\n"


def test_a_prompt_longer_than_the_context_is_cut_on_the_left_with_a_message(written):
    for extra in (0, 1, 100):
        message = f"the prompt has {64 + extra} tokens; the model sees only its last 64\n" if extra else ""
        assert written("runs/tiny", "-p", "x" * (CONTEXT_LENGTH + extra), "-m", "5")[1] == message


def test_nanogpts_flags_are_the_same(written, folder):
    ours = "runs/tiny -p ab -m 12 --num-samples 2 --top-k 9 --dtype fp32"
    theirs = "--out_dir=runs/tiny --init_from=resume --start=ab --max_new_tokens=12 --num_samples=2 --top_k=9"
    assert written(*theirs.split(), "--dtype=float32") == written(*ours.split())
    (folder / "prompt.txt").write_text("from a file")
    flags = "--out_dir=runs/tiny --start=FILE:prompt.txt --max_new_tokens=1"
    assert written(*flags.split())[0].startswith("from a file")


def test_dtype_and_quantize_sample_on_the_cpu_with_a_message_for_fp16_only(written):
    for flags in ("--dtype=bf16", "--quantize int8", "--quantize=int4", "--quantize=int4 --dtype=bf16"):
        assert written("runs/tiny", "-m", "5", *flags.split())[1] == "", flags
    message = "dtype fp32: fp16 is not trained on a CPU, so fp32\n"
    assert written("runs/tiny", "-m", "5", "--dtype", "fp16", "--quantize", "int8")[1] == message


def test_untrained_samples_random_weights_of_a_recipe(written):
    first, second = (written("--untrained", "debug", "-m", "20", "--seed", "3") for _ in range(2))
    assert first == second
    assert first[1] == "random weights in the shape of debug; tokenizer byte\n"
    message = "tokenizer byte (the recipe's bpe is trained on its data)"
    assert message in written("--untrained", "python", "-m", "2")[1]


class Terminal(io.StringIO):
    """Standard output that is a terminal, and what it showed at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def isatty(self):
        return True

    def flush(self):
        self.flushed.append(self.getvalue())


@pytest.fixture
def shown(monkeypatch):
    """Run the command on a terminal."""

    def run(*arguments):
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        monkeypatch.setenv("TERM", "xterm-256color")
        assert main(list(arguments)) == 0
        return terminal

    return run


def test_on_a_terminal_the_prompt_is_dim_and_the_text_arrives_in_pieces(shown):
    terminal = shown("runs/tiny", "-p", "a long prompt " * 20, "-m", "20")
    assert terminal.getvalue().startswith("\x1b[2m" + "a long prompt " * 20 + "\x1b[0m")
    assert len({text for text in terminal.flushed if "\x1b[0m" in text}) > 10


def test_on_a_terminal_control_characters_are_escaped(shown):
    terminal = shown("runs/tiny", "-p", "\x1b[31m", "-m", "300", "--temperature", "2", "--top-k", "0")
    prompt, _, text = terminal.getvalue().partition("\x1b[0m")
    assert prompt == "\x1b[2m\\x1b[31m"
    assert "\\x" in text
    assert set(text).isdisjoint(map(chr, (*range(9), *range(11, 32), 127)))
    assert visible("a\tb\né漢🙂\r\0\x7f\x9b") == "a\tb\né漢🙂\\x0d\\x00\\x7f\\x9b"
