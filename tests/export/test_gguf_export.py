"""Entry `gguf`: read by `gguf`'s own reader and by transformers, and computed with in bare numpy."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from quillgpt.errors import ConfigError, ExportError
from quillgpt.export import EXPORTERS
from quillgpt.export.checked import TEXT, export
from quillgpt.export.format import Origin
from quillgpt.export.gguf import FORMAT, check_tensors, gguf_names, write_export
from quillgpt.export.quiet import quiet
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer

ORIGIN = Origin(name="tiny", step=7)
DTYPES = EXPORTERS["gguf"].dtypes
KINDS = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {x.name: gguf.dequantize(x.data, x.tensor_type) for x in gguf.GGUFReader(path).tensors}


def numpy_gpt2(path: Path) -> Callable[[list[int]], np.ndarray]:
    """GPT-2 on the file's tensors and keys alone, in float64: tokens (T) -> logits (T, V)."""
    settings, x = fields(path), {name: tensor.astype(np.float64) for name, tensor in tensors(path).items()}
    return functools.partial(numpy_logits, settings, x)


def numpy_logits(settings: dict, x: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    heads, epsilon = settings["gpt2.attention.head_count"], settings["gpt2.attention.layer_norm_epsilon"]

    def norm(values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * x[f"{name}.weight"] + x[f"{name}.bias"]

    def linear(values: np.ndarray, name: str) -> np.ndarray:
        return values @ x[f"{name}.weight"].T + x[f"{name}.bias"]

    stream = x["token_embd.weight"][tokens] + x["position_embd.weight"][: len(tokens)]
    for i in range(settings["gpt2.block_count"]):
        qkv = linear(norm(stream, f"blk.{i}.attn_norm"), f"blk.{i}.attn_qkv")
        query, key, value = (np.stack(np.split(part, heads, axis=-1)) for part in np.split(qkv, 3, axis=-1))
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ value
        stream = stream + linear(np.concatenate(list(mixed), axis=-1), f"blk.{i}.attn_output")
        inner = linear(norm(stream, f"blk.{i}.ffn_norm"), f"blk.{i}.ffn_up")
        gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        stream = stream + linear(gelu, f"blk.{i}.ffn_down")
    return norm(stream, "output_norm") @ x.get("output.weight", x["token_embd.weight"]).T


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"tied_head": False}], ids=["biased", "bare", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_on_the_files_tensors_computes_the_models_logits(
    dtype: str,
    settings: dict,
    random_model: Callable[..., GPT],
    byte_tokenizer: Tokenizer,
    tmp_path: Path,
    tokens,
    assert_close,
) -> None:
    model = random_model(**settings)
    write_export(model, byte_tokenizer, tmp_path, dtype, ORIGIN)

    got = numpy_gpt2(tmp_path / f"model-{dtype}.gguf")(tokens[0].tolist())

    tolerance = 1e-6 if dtype == "f32" else FORMAT.tolerance[dtype]
    with torch.no_grad():
        assert_close(torch.from_numpy(got)[None], model.double()(tokens[:1]), tolerance)


def test_transformers_differs_in_no_bit_from_the_model_it_would_have_loaded_otherwise(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path, tokens
) -> None:
    from quillgpt.export.huggingface import write_export as write_huggingface

    for folder in ("gguf", "huggingface"):
        (tmp_path / folder).mkdir()
    write_export(random_model(), byte_tokenizer, tmp_path / "gguf", "f32", ORIGIN)
    write_huggingface(random_model(), byte_tokenizer, tmp_path / "huggingface", "f32", ORIGIN)

    expected = GPT2LMHeadModel.from_pretrained(tmp_path / "huggingface").eval()
    config = GPT2Config.from_pretrained(tmp_path / "gguf")
    with quiet():
        got = GPT2LMHeadModel.from_pretrained(tmp_path / "gguf", gguf_file="model-f32.gguf", config=config).eval()
    assert torch.equal(got(tokens).logits, expected(tokens).logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_take_the_dtype_and_the_rest_stays_f32(
    dtype: str, random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_export(random_model(), byte_tokenizer, tmp_path, dtype, ORIGIN)

    stored = {x.name: x.tensor_type.name for x in gguf.GGUFReader(tmp_path / f"model-{dtype}.gguf").tensors}

    matrices = {"token_embd.weight"} | {
        f"blk.{i}.{part}.weight" for i in range(2) for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    }
    assert {name for name in stored if stored[name] == KINDS[dtype]} >= matrices
    assert {stored[name] for name in stored.keys() - matrices} == {"F32"}
    assert len(stored) == 2 + 2 * 12 + 2


def test_rows_that_do_not_fill_blocks_of_32_become_f16(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(n_embd=40)  # 40 channels, 160 inside the MLP
    write_export(model, byte_tokenizer, tmp_path, "q8_0", ORIGIN)
    stored = {x.name: x.tensor_type.name for x in gguf.GGUFReader(tmp_path / "model-q8_0.gguf").tensors}
    assert stored["blk.0.ffn_up.weight"] == "F16"
    assert stored["blk.0.ffn_down.weight"] == "Q8_0"


def test_every_weight_is_within_its_rounding(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model()
    for dtype in DTYPES:
        write_export(model, byte_tokenizer, tmp_path, dtype, ORIGIN)
        got, weights = tensors(tmp_path / f"model-{dtype}.gguf"), gguf_names(model)
        name = "blk.1.attn_output.weight"
        weight = weights[name].numpy()
        assert weights[name] is not None
        np.testing.assert_array_equal(model.blocks[1].attention.projection.weight.detach().numpy(), weight)
        if dtype == "f32":
            np.testing.assert_array_equal(got[name], weight)
        if dtype == "f16":
            np.testing.assert_array_equal(got[name], weight.astype(np.float16).astype(np.float32))
        if dtype == "q8_0":
            steps = np.abs(weight.reshape(-1, 32)).max(axis=1) / 127
            errors = np.abs(got[name] - weight).reshape(-1, 32).max(axis=1)
            assert (errors <= 0.57 * steps).all()
            assert errors.max() > 0.3 * steps.max()


@pytest.mark.parametrize("kind", DTYPES)
def test_a_tensor_that_is_not_the_weight_is_refused(
    kind: str, random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model()
    write_export(model, byte_tokenizer, tmp_path, kind, ORIGIN)
    path, weights = tmp_path / f"model-{kind}.gguf", gguf_names(model)
    check_tensors(path, weights)
    for name in ("blk.0.attn_output.weight", "output_norm.bias", "position_embd.weight"):
        changed = weights[name].clone()
        changed.view(-1)[5] += 0.01 * weights[name].abs().max()
        with pytest.raises(ExportError, match=name):
            check_tensors(path, weights | {name: changed})
    square = "blk.0.attn_output.weight"
    with pytest.raises(ExportError, match=square):
        check_tensors(path, weights | {square: weights[square].T})
    del weights[square]
    with pytest.raises(ExportError, match="other tensors"):
        check_tensors(path, weights)


def test_a_wrong_scale_is_refused_although_the_logits_would_pass(
    random_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", lambda numbers, kind: right(numbers * np.float32(1.01), kind))
    with pytest.raises(ExportError, match="further from the weight than"):
        export(str(random_run()), "gguf", out=str(tmp_path / "out"), dtype="q8_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_keys_are_llama_cpps(
    dtype: str, random_model: Callable[..., GPT], bpe_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_export(random_model(vocab_size=290), bpe_tokenizer, tmp_path, dtype, ORIGIN)

    found = fields(tmp_path / f"model-{dtype}.gguf")

    types = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    expected = {
        "general.architecture": "gpt2",
        "general.name": "tiny",
        "general.file_type": types.get(dtype, gguf.LlamaFileType.MOSTLY_Q8_0),
        "gpt2.block_count": 2,
        "gpt2.context_length": 24,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 289,
        "tokenizer.ggml.eos_token_id": 289,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
    assert found["tokenizer.ggml.token_type"] == [1] * 289 + [3]
    assert len(found["tokenizer.ggml.merges"]) == 290 - 257
    assert all(len(merge.split(" ")) == 2 for merge in found["tokenizer.ggml.merges"])


@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_the_tokenizer_in_the_file_cuts_as_ours(
    name: str, random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, bpe_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer = bpe_tokenizer if name == "bpe" else byte_tokenizer
    write_export(random_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path, "q8_0", ORIGIN)
    with quiet():
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model-q8_0.gguf")
    for text in (TEXT, "the lazy dog", "  \n\n\t x", "naïve", "", "don't"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.end_of_text


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mlp", "swiglu"),
        ("mlp", "relu2"),
        ("mlp", "gelu-exact"),
        ("norm", "rmsnorm"),
        ("position", "rotary"),
        ("qk_norm", True),
    ],
)
def test_a_setting_in_the_way_is_named(
    setting: str, value: object, random_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"gguf: {setting} = {value!r} cannot be expressed"):
        export(str(random_run(**{setting: value})), "gguf", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_characters_cannot_be_expressed(random_run: Callable[..., Path], tmp_path: Path) -> None:
    from quillgpt.tokenizer import train_tokenizer

    run = random_run(train_tokenizer("character", ["abc"], 0))
    with pytest.raises(ConfigError, match="tokenizer = 'character' cannot be expressed"):
        export(str(run), "gguf", out=str(tmp_path / "out"))


@pytest.mark.parametrize(("dtype", "count"), [("f32", 12), ("f16", 12), ("q8_0", 1)])
def test_a_reader_of_the_file_continues_as_quill_does(
    dtype: str, count: int, trained_run: Path, tmp_path: Path, greedy: Callable[[str, int], str]
) -> None:
    export(str(trained_run), "gguf", out=str(tmp_path / "out"), dtype=dtype)
    path = tmp_path / "out" / f"model-{dtype}.gguf"
    vocabulary, logits = fields(path)["tokenizer.ggml.tokens"], numpy_gpt2(path)
    for prompt in ("document 1", "word", "x"):
        tokens = [vocabulary.index(character) for character in prompt.replace(" ", "Ġ")]
        for _ in range(count):
            tokens.append(int(logits(tokens)[-1].argmax()))
        text = "".join(vocabulary[token] for token in tokens).replace("Ġ", " ").replace("Ċ", "\n")
        assert text == greedy(prompt, count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_continues_from_the_file_as_quill_does(
    dtype: str, trained_run: Path, tmp_path: Path, greedy: Callable[[str, int], str]
) -> None:
    done = export(str(trained_run), "gguf", out=str(tmp_path / "out"), dtype=dtype)
    namespace: dict = {}
    with quiet():
        exec(done.usage, namespace)  # the lines that tell how to load it
    model, tokenizer = namespace["model"], namespace["tokenizer"]
    for prompt in ("document 1", "word", "x"):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            following = int(model.eval()(tokens).logits[0, -1].argmax())
        assert prompt + tokenizer.decode([following]) == greedy(prompt, 1)


def test_the_table_for_readers_is_what_is_written(random_model: Callable[..., GPT]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\| `([\w.]+)` \|$", page.split("## GGUF")[1], re.MULTILINE)
    model = random_model(tied_head=False)
    weights = {name: tensor[:257] for name, tensor in model.state_dict().items()}
    listed = {
        theirs.replace("N", str(i)): weights[ours.replace("N", str(i))] for ours, theirs in rows for i in range(2)
    }
    written = gguf_names(model)
    assert listed.keys() == written.keys()
    assert all(torch.equal(listed[name], written[name]) for name in written)
