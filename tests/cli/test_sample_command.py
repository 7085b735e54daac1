"""`quill sample` as it is typed: what it writes where, and one line for every mistake."""

import io
import subprocess
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
from quillgpt.sample.generate import generate
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
def workplace(tmp_path, monkeypatch, model, tokenizer):
    """A folder with one run in runs/, where the command is typed."""
    save_run(tmp_path / "runs" / "tiny", model, tokenizer)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_run(path, model, tokenizer):
    checkpoint.save(
        RunDirectory(path),
        step=1,
        model=model,
        optimizer_state={"step": torch.ones(1)},
        state={},
        resolved={},
        config_toml="",
        tokenizer=tokenizer,
        data_fingerprint="none",
        held_out_loss=None,
    )


def quill(monkeypatch, capsys, *arguments):
    """The exit code, standard output and standard error of the whole command."""
    monkeypatch.setattr(sys, "argv", ["quill", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    written = capsys.readouterr()
    return stopped.value.code, written.out, written.err


def one_line(written):
    code, out, err = written
    assert out == ""
    assert err.startswith("quill: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    return code, err


BEYOND = [
    ("temperature", ["--temperature=-1"]),
    ("temperature", ["--temperature", "nan"]),
    ("temperature", ["--temperature=1e999"]),
    ("temperature", ["--temperature", "2.01"]),
    ("top_k", ["--top-k=-1"]),
    ("top_p", ["--top-p", "0"]),
    ("top_p", ["--top_p=1.5"]),
    ("top_p", ["--top-p=nan"]),
    ("max_new_tokens", ["-m", "0"]),
    ("max_new_tokens", ["--max_new_tokens=1000000000"]),
    ("num_samples", ["--num_samples", "0"]),
    ("num_samples", ["--num-samples=1000000"]),
    ("seed", ["--seed=-1"]),
    ("seed", ["--seed", str(2**63)]),
    ("stop", ["--stop="]),
    ("stop", ["--stop", "x" * 2000]),
    ("stop", ["--stop", "\udcff"]),
]


@pytest.mark.parametrize(("name", "arguments"), BEYOND, ids=lambda value: value if isinstance(value, str) else None)
def test_a_number_beyond_its_limit_is_one_line_and_exit_code_2(monkeypatch, capsys, name, arguments):
    monkeypatch.setattr(checkpoint, "load_model", None)  # the limits are checked before a model is loaded
    code, line = one_line(quill(monkeypatch, capsys, "sample", "runs/tiny", *arguments))
    assert code == 2
    assert f"{name} = " in line
    assert LIMITS[name] in line


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
    (["--compile=perhaps"], "neither true nor false"),
    (["--out_dir=runs/other"], "name different models"),
    (["--init_from=gpt2"], "name different models"),
    (["--untrained", "debug"], "name different models"),
    (["more", "words"], "more"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(monkeypatch, capsys, arguments, named):
    code, line = one_line(quill(monkeypatch, capsys, "sample", "runs/tiny", *arguments))
    assert code == 2
    assert named in line


@pytest.mark.parametrize("prompt", ["\udcff", "x" * (MAX_PROMPT_BYTES + 1)], ids=["not_utf8", "too_long"])
def test_an_impossible_prompt_is_refused_before_a_model_is_looked_for(monkeypatch, capsys, prompt):
    code, line = one_line(quill(monkeypatch, capsys, "sample", "runs/nothing", "-p", prompt))
    assert code == 2
    assert "prompt" in line


def test_an_unknown_recipe_is_one_line_with_the_nearest(monkeypatch, capsys):
    code, line = one_line(quill(monkeypatch, capsys, "sample", "--untrained", "debgu"))
    assert code == 2
    assert "debug" in line


@pytest.mark.parametrize("where", ["runs/nothing", "runs", "/dev/null"])
def test_a_run_that_is_none_is_one_line_and_exit_code_65(monkeypatch, capsys, where):
    assert one_line(quill(monkeypatch, capsys, "sample", where))[0] == 65


def test_a_prompt_file_that_is_not_utf8_names_the_byte(monkeypatch, capsys, workplace):
    (workplace / "prompt.txt").write_bytes(b"caf\xe9")
    code, line = one_line(quill(monkeypatch, capsys, "sample", "-p", "FILE:prompt.txt"))
    assert code == 65
    assert "prompt.txt" in line
    assert "byte 0xe9 at offset 3" in line


def test_a_huge_prompt_file_is_refused_without_reading_it_all(monkeypatch, capsys, workplace):
    with (workplace / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    code, line = one_line(quill(monkeypatch, capsys, "sample", "-p", "FILE:huge.txt"))
    assert code == 2
    assert "at most 1,000,000 bytes" in line


def test_huge_standard_input_is_refused_without_reading_it_all(monkeypatch, capsys):
    endless = SimpleNamespace(buffer=SimpleNamespace(read=lambda size: b"x" * size))
    monkeypatch.setattr(sys, "stdin", endless)
    assert one_line(quill(monkeypatch, capsys, "sample", "-p", "-"))[0] == 2


def test_without_standard_input_a_dash_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert one_line(quill(monkeypatch, capsys, "sample", "-p", "-"))[0] == 2


def test_a_damaged_model_is_one_line_and_exit_code_70(monkeypatch, capsys, workplace, tokenizer):
    torch.manual_seed(0)
    damaged = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, context_length=4, vocab_size=257))
    with torch.no_grad():
        damaged.final_norm.weight.fill_(torch.nan)
    save_run(workplace / "runs" / "damaged", damaged, tokenizer)
    code, _, err = quill(monkeypatch, capsys, "sample", "runs/damaged", "-p", "x")
    assert code == 70
    assert err.count("\n") == 1


def test_the_text_is_the_prompt_and_its_continuation(capsys, model, tokenizer):
    arguments = ["-p", "def ", "-m", "30", "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--seed", "7"]
    assert main(["runs/tiny", *arguments]) == 0
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    assert capsys.readouterr() == ("def " + generate(model, tokenizer, "def ", **options)[0] + "\n", "")


def test_several_samples_are_separated_by_lines(capsys, model, tokenizer):
    main(["runs/tiny", "-p", "ab", "-m", "10", "--num-samples", "3"])
    texts = generate(model, tokenizer, "ab", max_new_tokens=10, num_samples=3)
    expected = "".join(f"--- sample {number} of 3 ---\nab{text}\n" for number, text in enumerate(texts, start=1))
    assert capsys.readouterr().out == expected


def test_without_a_model_the_newest_run_is_taken_and_named_on_standard_error(capsys, model, tokenizer):
    main(["-m", "10"])
    written = capsys.readouterr()
    assert written.out == generate(model, tokenizer, max_new_tokens=10)[0] + "\n"
    assert written.err == "the newest run: runs/tiny\n"


def test_a_checkpoint_can_be_named(capsys):
    main(["runs/tiny", "-m", "10"])
    expected = capsys.readouterr()
    main(["runs/tiny/checkpoints/step-000001", "-m", "10"])
    assert capsys.readouterr() == expected


def test_a_prompt_can_come_from_a_file_or_standard_input_byte_for_byte(monkeypatch, capsys, workplace):
    prompt = "a\r\nb\0é\n"
    (workplace / "prompt.txt").write_bytes(prompt.encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(prompt.encode())))
    written = []
    for argument in (prompt, "FILE:prompt.txt", "-"):
        main(["runs/tiny", "-p", argument, "-m", "10"])
        written.append(capsys.readouterr().out)
    assert written[0].startswith(prompt)
    assert written == [written[0]] * 3


def test_a_prompt_that_begins_with_hyphens_is_given_with_an_equals_sign(capsys):
    main(["runs/tiny", "--prompt=--- a title", "-m", "1"])
    assert capsys.readouterr().out.startswith("--- a title")


def test_stop_strings_may_be_given_several_times(capsys, model, tokenizer):
    whole = generate(model, tokenizer, "ab", max_new_tokens=60)[0]
    stops = [whole[20:22], whole[8:10]]
    main(["runs/tiny", "-p", "ab", "-m", "60", "--stop", stops[0], "--stop", stops[1]])
    assert capsys.readouterr().out == "ab" + whole[: min(map(whole.index, stops))] + "\n"


@pytest.mark.parametrize("extra", [0, 1, 100])
def test_a_prompt_longer_than_the_context_is_cut_on_the_left_and_said(capsys, extra):
    main(["runs/tiny", "-p", "x" * (CONTEXT_LENGTH + extra), "-m", "5"])
    err = capsys.readouterr().err
    assert err == (f"the prompt has {64 + extra} tokens; the model sees only its last 64\n" if extra else "")


def test_nanogpt_s_flags_mean_the_same(capsys):
    main(["runs/tiny", "-p", "ab", "-m", "12", "--num-samples", "2", "--top-k", "9", "--dtype", "fp32"])
    expected = capsys.readouterr()
    theirs = "--out_dir=runs/tiny --init_from=resume --start=ab --max_new_tokens=12 --num_samples=2 --top_k=9"
    main([*theirs.split(), "--dtype=float32"])
    assert capsys.readouterr() == expected


def test_a_start_may_be_a_file_as_in_nanogpt(capsys, workplace):
    (workplace / "prompt.txt").write_text("from a file")
    main(["--out_dir=runs/tiny", "--start=FILE:prompt.txt", "--max_new_tokens=1"])
    assert capsys.readouterr().out.startswith("from a file")


def test_bf16_samples_on_the_cpu(capsys):
    assert main(["runs/tiny", "--dtype", "bf16", "-m", "5"]) == 0


@pytest.mark.parametrize(
    "arguments", [["--quantize", "int8"], ["--quantize=int4"], ["--quantize=int4", "--dtype=bf16"]]
)
def test_quantised_weights_sample_and_say_nothing(capsys, arguments):
    assert main(["runs/tiny", "-m", "5", *arguments]) == 0
    assert capsys.readouterr().err == ""


def test_without_a_compiler_compile_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("quillgpt.hardware._has_compiler", lambda: False)
    code, line = one_line(quill(monkeypatch, capsys, "sample", "runs/tiny", "--compile"))
    assert code == 2
    assert "install g++" in line


def test_fp16_on_the_cpu_is_fp32_and_says_so_quantised_or_not(capsys):
    main(["runs/tiny", "-m", "5", "--dtype", "fp16", "--quantize", "int8"])
    assert capsys.readouterr().err == "dtype fp32: fp16 is not trained on a CPU, so fp32\n"


def test_nothing_asked_is_the_text_of_fp32(capsys, model, tokenizer):
    main(["runs/tiny", "-m", "30", "--dtype", "fp32", "--quantize", "none"])
    assert capsys.readouterr().out == generate(model, tokenizer, max_new_tokens=30)[0] + "\n"


def test_untrained_samples_random_weights_of_a_recipe(capsys):
    assert main(["--untrained", "debug", "-m", "20", "--seed", "3"]) == 0
    first = capsys.readouterr()
    assert first.err == "random weights in the shape of debug; tokenizer byte\n"
    main(["--untrained", "debug", "-m", "20", "--seed", "3"])
    assert capsys.readouterr() == first


def test_untrained_takes_bytes_where_the_recipe_s_tokenizer_is_learnt(capsys):
    assert main(["--untrained", "python", "-m", "2"]) == 0
    assert "tokenizer byte (the recipe's bpe is learnt from its data)" in capsys.readouterr().err


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self):
        return True


def test_on_a_terminal_the_prompt_is_dim_and_the_text_arrives_in_pieces(monkeypatch):
    terminal = Terminal()
    pieces = []
    monkeypatch.setattr(terminal, "flush", lambda: pieces.append(terminal.getvalue()))
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    main(["runs/tiny", "-p", "a long prompt " * 20, "-m", "20"])
    assert terminal.getvalue().startswith("\x1b[2m" + "a long prompt " * 20 + "\x1b[0m")
    assert len({piece for piece in pieces if "\x1b[0m" in piece}) > 10


def test_on_a_terminal_control_characters_are_shown_and_not_obeyed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    main(["runs/tiny", "-p", "\x1b[31m", "-m", "300", "--temperature", "2", "--top-k", "0"])
    text = terminal.getvalue()
    assert "\\x1b[31m" in text
    assert set(text[len("\x1b[2m\\x1b[31m\x1b[0m") :]).isdisjoint(map(chr, (*range(9), *range(11, 32), 127)))


def test_visible_keeps_lines_tabs_and_every_other_character():
    assert visible("a\tb\né漢🙂") == "a\tb\né漢🙂"
    assert visible("\r\0\x7f\x9b") == "\\x0d\\x00\\x7f\\x9b"


def test_help_needs_no_torch():
    code = """if True:
        import sys
        from quillgpt.cli.main import run
        try:
            run(["sample", "--help"])
        finally:
            print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--max-new-tokens" in done.stdout
    assert done.stdout.endswith("False\n")
