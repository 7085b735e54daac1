"""Entry `onnx`: onnxruntime computes the model's logits for any batch and length. Graphs take seconds: few are made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

import quillgpt.export.onnx as entry
from quillgpt.checkpoint import load_model
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.export.checked import Exported, export
from quillgpt.export.format import Origin
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT, Block
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.tokenizer import Tokenizer

SHAPES = [(1, 1), (1, 2), (2, 1), (3, 7), (1, 24), (5, 23)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")


def implementations() -> list[str]:
    """One name of the menu for each function behind it: what differs in a number only is traced the same way."""
    found: dict[object, str] = {}
    for name, attend in ATTENTION.items():
        found.setdefault(getattr(attend, "func", attend), name)
    return list(found.values())


@pytest.fixture(scope="module")
def trained(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(str(trained_run), "onnx", out=str(tmp_path_factory.mktemp("onnx") / "out"))


@pytest.fixture(scope="module")
def menus(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> SimpleNamespace:
    """One graph whose blocks take turns through all menus, with its weights in a file of their own."""
    torch.manual_seed(4)
    names = implementations()
    shape = {"n_head": 2, "n_embd": 16, "context_length": 24, "vocab_size": 257}
    config = ModelConfig(n_layer=len(names), position="rotary", qk_norm=True, bias=False, tied_head=False, **shape)
    model = GPT(config).eval()
    for layer, name in enumerate(names):
        mlp, norm = list(MLPS)[layer % len(MLPS)], list(NORMS)[layer % len(NORMS)]
        other = dataclasses.replace(config, attention=name, mlp=mlp, norm=norm, bias=layer % 3 == 0)
        model.blocks[layer] = Block(other, layer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(mean=1.0, std=0.1)
    tokens = {shape: torch.randint(257, shape) for shape in SHAPES}
    with torch.no_grad():
        expected = {shape: model(batch) for shape, batch in tokens.items()}
    folder = tmp_path_factory.mktemp("menus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "LARGEST_FILE", 0)
        entry.write_export(model, byte_tokenizer, folder, "f32", Origin(name="menus", step=None))
    return SimpleNamespace(folder=folder, tokens=tokens, expected=expected, written=entry.read(folder))


@every_shape
def test_a_trained_model_is_the_same_in_onnxruntime(
    shape: tuple[int, int], trained: Exported, trained_run: Path, assert_close
) -> None:
    model, _ = load_model(trained_run)
    tokens = torch.randint(257, shape)
    with torch.no_grad():
        assert_close(entry.read(trained.path).logits(tokens), model(tokens), 1e-5)


@every_shape
def test_every_entry_of_every_menu_is_the_same_in_onnxruntime(
    shape: tuple[int, int], menus: SimpleNamespace, assert_close
) -> None:
    assert_close(menus.written.logits(menus.tokens[shape]), menus.expected[shape], 1e-5)


def test_large_weights_have_a_file_of_their_own(menus: SimpleNamespace) -> None:
    graph, weights = menus.folder / entry.GRAPH, menus.folder / entry.WEIGHTS
    assert weights.stat().st_size > 4 * 16 * 257 * 2
    assert b"model.onnx.data" in graph.read_bytes()
    weights.rename(weights.with_suffix(".away"))
    with pytest.raises(Exception, match=r"model\.onnx\.data"):
        onnxruntime.InferenceSession(graph)
    weights.with_suffix(".away").rename(weights)


def test_the_graph_is_named_as_others_name_it_and_has_the_real_vocabulary(trained: Exported) -> None:
    session = onnxruntime.InferenceSession(trained.path / "model.onnx")
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("input_ids", "tensor(int64)", ["batch", "length"])
    assert (returned.name, returned.type, returned.shape) == ("logits", "tensor(float)", ["batch", "length", 257])
    assert trained.difference <= 1e-5
    assert trained.sizes.keys() == {"model.onnx", "tokenizer.json"}
    with pytest.raises(Exception, match="indices element out of data bounds"):  # a padding row is nobody's token
        session.run(None, {"input_ids": [[257]]})


def test_the_graph_continues_as_quill_does(trained: Exported, greedy: Callable[[str, int], str]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(trained.path / "tokenizer.json"))
    session = onnxruntime.InferenceSession(trained.path / "model.onnx")
    for prompt in ("document 1", "word", "x"):
        tokens = tokenizer.encode(prompt).ids
        for _ in range(20):
            (logits,) = session.run(None, {"input_ids": [tokens]})
            tokens.append(int(logits[0, -1].argmax()))
        assert tokenizer.decode(tokens) == greedy(prompt, 20)


def test_the_lines_that_tell_how_to_load_it_work(trained: Exported) -> None:
    namespace: dict[str, object] = {}
    exec(trained.usage, namespace)
    assert namespace["logits"].shape == (1, len("Once upon a time"), 257)


def test_nothing_reaches_the_screen(trained_run: Path, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    import logging
    import warnings

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
