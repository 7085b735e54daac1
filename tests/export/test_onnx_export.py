"""Exporter `onnx`: onnxruntime computes the model's logits for any batch and length. A graph takes seconds to make."""

import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer as Reader

import quillgpt.export.onnx as entry
from quillgpt.checkpoint import load_model
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.export import Origin
from quillgpt.export.export import Exported, export
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT, Block
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.tokenizer import Tokenizer

SHAPES = [(1, 1), (1, 2), (2, 1), (3, 7), (1, 24), (5, 23)]


def implementations() -> list[str]:
    """One menu name per function: entries that differ in a number only are traced the same way."""
    found: dict[object, str] = {}
    for name, attention in ATTENTION.items():
        found.setdefault(getattr(attention.function, "func", attention.function), name)
    return list(found.values())


@pytest.fixture(scope="module")
def trained(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(str(trained_run), "onnx", out=str(tmp_path_factory.mktemp("onnx") / "out"))


def wrong_shapes(folder: Path, model: GPT, difference: Callable) -> dict[tuple[int, int], float]:
    """Shapes of tokens for which onnxruntime does not compute the model's logits."""
    written, found = entry.read(folder), {}
    for shape in SHAPES:
        tokens = torch.randint(257, shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            found[shape] = difference(written.logits(tokens), model(tokens))
    return {shape: off for shape, off in found.items() if not off <= 1e-5}


def test_a_trained_model_is_the_same_in_onnxruntime(trained: Exported, trained_run: Path, difference: Callable) -> None:
    assert not wrong_shapes(trained.path, load_model(trained_run)[0], difference)
    session = onnxruntime.InferenceSession(trained.path / "model.onnx")
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("input_ids", "tensor(int64)", ["batch", "length"])
    assert (returned.name, returned.type, returned.shape) == ("logits", "tensor(float)", ["batch", "length", 257])
    assert trained.sizes.keys() == {"model.onnx", "tokenizer.json"}
    with pytest.raises(Exception, match="indices element out of data bounds"):  # a padding row is not a token
        session.run(None, {"input_ids": [[257]]})
    namespace: dict[str, object] = {}
    exec(trained.usage, namespace)  # the code that is printed
    assert namespace["logits"].shape == (1, len("Once upon a time"), 257)


def test_every_entry_of_every_menu_is_the_same_in_onnxruntime_with_weights_in_their_own_file(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, difference: Callable
) -> None:
    torch.manual_seed(4)
    names = implementations()
    shape = {"n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 257}
    flags = {"bias": False, "tied_head": False, "embedding_norm": True, "value_embeddings": True, "logit_softcap": 5.0}
    config = ModelConfig(n_layer=len(names), position="rotary", qk_norm=True, residual="mixed", **flags, **shape)
    model = GPT(config).eval()
    for layer, name in enumerate(names):
        mlp, norm = list(MLPS)[layer % len(MLPS)], list(NORMS)[layer % len(NORMS)]
        other = dataclasses.replace(config, attention=name, mlp=mlp, norm=norm, bias=layer % 3 == 0)
        model.blocks[layer] = Block(other, layer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=0.0 if parameter.ndim > 1 else 1.0, std=0.1)
    monkeypatch.setattr(entry, "LARGEST_FILE", 0)
    entry.write_export(model, byte_tokenizer, tmp_path, "f32", Origin(name="menus", step=None))
    assert not wrong_shapes(tmp_path, model, difference)

    graph, weights = tmp_path / entry.GRAPH, tmp_path / entry.WEIGHTS
    assert weights.stat().st_size > 4 * 16 * 257 * 2
    assert b"model.onnx.data" in graph.read_bytes()
    weights.unlink()
    with pytest.raises(Exception, match=r"model\.onnx\.data"):
        onnxruntime.InferenceSession(graph)


def test_the_graph_continues_as_quill_does(trained: Exported, greedy: Callable[[str, int], str]) -> None:
    tokenizer = Reader.from_file(str(trained.path / "tokenizer.json"))
    session = onnxruntime.InferenceSession(trained.path / "model.onnx")
    for prompt in ("document 1", "word", "x"):
        tokens = tokenizer.encode(prompt).ids
        for _ in range(20):
            (logits,) = session.run(None, {"input_ids": [tokens]})
            tokens.append(int(logits[0, -1].argmax()))
        assert tokenizer.decode(tokens) == greedy(prompt, 20)


def test_what_torch_cannot_write_is_one_line_and_nothing_else_is_printed(
    trained_run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*arguments: object, **options: object) -> None:
        print("progress")
        logging.getLogger("torch.onnx").error("chatter")
        warnings.warn("advice", stacklevel=1)
        raise torch.onnx.errors.OnnxExporterError("a page") from ValueError("no way to write strange::op\nand more")

    monkeypatch.setattr(torch.onnx, "export", noisy)
    with pytest.raises(ConfigError) as raised:
        export(str(trained_run), "onnx", out=str(trained_run.parent / "noisy"))
    expected = "onnx: torch cannot write a model with attention = 'softmax': no way to write strange::op"
    assert str(raised.value) == expected
    assert capfd.readouterr() == ("", "")
    assert not (trained_run.parent / "noisy").exists()
