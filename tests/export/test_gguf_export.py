"""Exporter `gguf`: read by `gguf`'s own reader and by transformers, and computed in plain numpy."""

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
from quillgpt.export import EXPORTERS, Origin, quiet
from quillgpt.export.export import TEXT, export
from quillgpt.export.gguf import check_tensors, gguf_weights, write_export
from quillgpt.export.huggingface import write_export as write_huggingface
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import Tokenizer, train_tokenizer

ORIGIN = Origin(name="tiny", step=7)
TOLERANCE = EXPORTERS["gguf"].tolerance
Build = Callable[..., GPT]


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {x.name: gguf.dequantize(x.data, x.tensor_type) for x in gguf.GGUFReader(path).tensors}


def kinds(path: Path) -> dict[str, str]:
    return {x.name: x.tensor_type.name for x in gguf.GGUFReader(path).tensors}


def numpy_gpt2(path: Path) -> Callable[[list[int]], np.ndarray]:
    """GPT-2 in float64 from the file's tensors and keys alone: tokens (T) -> logits (T, V)."""
    x = {name: tensor.astype(np.float64) for name, tensor in tensors(path).items()}
    return functools.partial(numpy_logits, fields(path), x)


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
        summed = (weights / weights.sum(-1, keepdims=True)) @ value
        stream = stream + linear(np.concatenate(list(summed), axis=-1), f"blk.{i}.attn_output")
        inner = linear(norm(stream, f"blk.{i}.ffn_norm"), f"blk.{i}.ffn_up")
        gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        stream = stream + linear(gelu, f"blk.{i}.ffn_down")
    return norm(stream, "output_norm") @ x.get("output.weight", x["token_embd.weight"]).T


def test_numpy_on_the_files_tensors_computes_the_models_logits(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path, tokens: torch.Tensor, difference: Callable
) -> None:
    wrong = {}
    for settings in ({}, {"bias": False}, {"tied_head": False}):
        for dtype, tolerance in TOLERANCE.items():
            model = random_model(**settings)
            write_export(model, byte_tokenizer, tmp_path, dtype, ORIGIN)
            got = numpy_gpt2(tmp_path / f"model-{dtype}.gguf")(tokens[0].tolist())
            with torch.no_grad():
                off = difference(torch.from_numpy(got)[None], model.double()(tokens[:1]))
            if not off <= (1e-6 if dtype == "f32" else tolerance):
                wrong[dtype, *settings] = off
    assert not wrong


def test_transformers_computes_the_same_bits_as_from_the_huggingface_export(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path, tokens: torch.Tensor
) -> None:
    for name, write in {"gguf": write_export, "huggingface": write_huggingface}.items():
        (tmp_path / name).mkdir()
        write(random_model(), byte_tokenizer, tmp_path / name, "f32", ORIGIN)
    expected = GPT2LMHeadModel.from_pretrained(tmp_path / "huggingface").eval()
    config = GPT2Config.from_pretrained(tmp_path / "gguf")
    with quiet():
        got = GPT2LMHeadModel.from_pretrained(tmp_path / "gguf", gguf_file="model-f32.gguf", config=config).eval()
    assert torch.equal(got(tokens).logits, expected(tokens).logits)


def test_matrices_have_the_dtype_and_the_rest_stays_f32(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    matrices = {"token_embd.weight"} | {
        f"blk.{i}.{part}.weight" for i in range(2) for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    }
    for dtype in TOLERANCE:
        write_export(random_model(), byte_tokenizer, tmp_path, dtype, ORIGIN)
        stored = kinds(tmp_path / f"model-{dtype}.gguf")
        assert {name for name in stored if stored[name] == dtype.upper()} >= matrices
        assert {stored[name] for name in stored.keys() - matrices} == {"F32"}
        assert len(stored) == 2 + 2 * 12 + 2
    write_export(random_model(n_embd=40), byte_tokenizer, tmp_path, "q8_0", ORIGIN)  # 160 inside the MLP
    stored = kinds(tmp_path / "model-q8_0.gguf")
    assert (stored["blk.0.ffn_up.weight"], stored["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")


def test_a_tensor_is_the_weight_within_its_rounding_or_refused(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, square = random_model(), "blk.1.attn_output.weight"
    weight = model.blocks[1].attention.projection.weight.detach().numpy()
    for dtype in TOLERANCE:
        write_export(model, byte_tokenizer, tmp_path, dtype, ORIGIN)
        path, weights = tmp_path / f"model-{dtype}.gguf", gguf_weights(model)
        got = tensors(path)[square]
        if dtype == "q8_0":
            steps = np.abs(weight.reshape(-1, 32)).max(axis=1) / 127
            errors = np.abs(got - weight).reshape(-1, 32).max(axis=1)
            assert (errors <= 0.57 * steps).all()
            assert errors.max() > 0.3 * steps.max()
        else:
            kind = np.float16 if dtype == "f16" else np.float32
            np.testing.assert_array_equal(got, weight.astype(kind).astype(np.float32))
        check_tensors(path, weights)
        for name in (square, "output_norm.bias", "position_embd.weight"):
            changed = weights[name].clone()
            changed.view(-1)[5] += (0.01 if dtype == "q8_0" else 0.002) * weights[name].abs().max()
            with pytest.raises(ExportError, match=name):
                check_tensors(path, weights | {name: changed})
        with pytest.raises(ExportError, match=square):
            check_tensors(path, weights | {square: weights[square].T})
        del weights[square]
        with pytest.raises(ExportError, match="other tensors"):
            check_tensors(path, weights)


def test_a_wrong_scale_is_refused_although_the_logits_would_pass(
    random_run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", lambda numbers, kind: right(numbers * np.float32(1.01), kind))
    with pytest.raises(ExportError, match="differs from the weight by more than"):
        export(random_run(), "gguf", out=str(tmp_path / "out"), dtype="q8_0")
    assert not (tmp_path / "out").exists()


def test_the_keys_are_llama_cpps(random_model: Build, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    types = gguf.LlamaFileType
    for dtype, kind in {"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}.items():
        write_export(random_model(vocab_size=290), bpe_tokenizer, tmp_path, dtype, ORIGIN)
        found = fields(tmp_path / f"model-{dtype}.gguf")
        expected = {
            "general.architecture": "gpt2",
            "general.name": "tiny",
            "general.file_type": kind,
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


def test_the_tokenizer_in_the_file_encodes_as_ours(
    random_model: Build, byte_tokenizer: Tokenizer, bpe_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for tokenizer in (byte_tokenizer, bpe_tokenizer):
        write_export(random_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path, "q8_0", ORIGIN)
        with quiet():
            theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model-q8_0.gguf")
        for text in (TEXT, "the lazy dog", "  \n\n\t x", "naïve", "", "don't"):
            assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.eos_token_id == tokenizer.end_of_text


def test_an_unsupported_setting_is_named(random_run: Callable[..., str], tmp_path: Path) -> None:
    mlps = [("mlp", name) for name in ("swiglu", "relu2", "gelu-exact")]
    for setting, value in [*mlps, ("norm", "rmsnorm"), ("position", "rotary"), ("qk_norm", True)]:
        with pytest.raises(ConfigError, match=f"gguf: unsupported {setting} = {value!r}"):
            export(random_run(**{setting: value}), "gguf", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="gguf: unsupported tokenizer = 'character'"):
        export(random_run(train_tokenizer("character", ["abc"], 0)), "gguf", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_readers_of_the_file_continue_as_quill_does(
    trained_run: Path, tmp_path: Path, greedy: Callable[[str, int], str]
) -> None:
    for dtype, count in {"f32": 12, "f16": 12, "q8_0": 1}.items():
        done = export(str(trained_run), "gguf", out=str(tmp_path / dtype), dtype=dtype)
        path, namespace = tmp_path / dtype / f"model-{dtype}.gguf", {}
        vocabulary, logits = fields(path)["tokenizer.ggml.tokens"], numpy_gpt2(path)
        with quiet():
            exec(done.usage, namespace)  # the code that is printed
        model, tokenizer = namespace["model"].eval(), namespace["tokenizer"]
        for prompt in ("document 1", "word", "x"):
            tokens = [vocabulary.index(character) for character in prompt.replace(" ", "Ġ")]
            with torch.no_grad():
                following = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            for _ in range(count):
                tokens.append(int(logits(tokens)[-1].argmax()))
            text = "".join(vocabulary[token] for token in tokens).replace("Ġ", " ").replace("Ċ", "\n")
            assert text == greedy(prompt, count)
            assert tokenizer(prompt)["input_ids"] == tokens[:-count]
            assert prompt + tokenizer.decode([following]) == greedy(prompt, 1)


def test_the_table_for_readers_is_what_is_written(random_model: Build) -> None:
    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\| `([\w.]+)` \|$", page.split("## GGUF")[1], re.MULTILINE)
    model = random_model(tied_head=False)
    weights = {name: tensor[:257] for name, tensor in model.state_dict().items()}
    listed = {
        theirs.replace("N", str(i)): weights[ours.replace("N", str(i))] for ours, theirs in rows for i in range(2)
    }
    written = gguf_weights(model)
    assert listed.keys() == written.keys()
    assert all(torch.equal(listed[name], written[name]) for name in written)
