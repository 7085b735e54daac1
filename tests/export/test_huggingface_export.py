"""Entry `huggingface`: transformers loads what was written, computes the same, and needs no quillgpt for it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import GPT2LMHeadModel

from quillgpt.checkpoint import load_model
from quillgpt.export.checked import export
from quillgpt.export.format import Origin
from quillgpt.export.gpt2_shape import in_the_way
from quillgpt.export.huggingface import FORMAT, MODELING, write_export
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.tokenizer import Tokenizer

ORIGIN = Origin(name="tiny", step=7)
GPT2_SHAPED = {
    "as published": {},
    "no biases": {"bias": False},
    "untied head": {"tied_head": False},
    "explicit attention": {"attention": "explicit"},
    "exact GELU": {"mlp": "gelu-exact"},
    "dropout": {"dropout": 0.1},
    "odd vocabulary": {"vocab_size": 67},
}
OTHERS = {
    **{f"attention_{name}": {"attention": name, "qk_norm": True} for name in ATTENTION},
    **{f"mlp_{name}": {"mlp": name, "norm": "rmsnorm"} for name in MLPS},
    **{f"norm_{name}": {"norm": name, "mlp": "relu2", "bias": False} for name in NORMS},
    **{f"position_{name}": {"position": name, "qk_norm": True, "tied_head": False} for name in POSITIONS},
    "odd_vocabulary": {"vocab_size": 67, "norm": "rmsnorm", "dropout": 0.1},
}
"""every entry of every menu in a model that is no GPT-2"""

WITHOUT_QUILLGPT = """
import json, sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "quillgpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

results = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.arange(22)[None] * 3
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 66, "eos_token_id": 66}
    prompt = tokens[:, :12].repeat(2, 1)
    with torch.no_grad():
        results[folder.name] = {
            "logits": model(tokens).logits,
            "last": model(tokens, logits_to_keep=1).logits,
            "loss": model(tokens, labels=tokens).loss,
            "cached": model.generate(prompt, use_cache=True, **options),
            "recomputed": model.generate(prompt, use_cache=False, **options),
            "beams": model.generate(prompt[:1], num_beams=3, **options).shape,
        }
    refused = 0
    for mask in ([[0, 1, 1], [1, 1, 1]], [[1, 0, 1], [1, 1, 1]]):
        try:
            model(tokens[:, :3].repeat(2, 1), attention_mask=torch.tensor(mask), use_cache=False)
        except ValueError as error:
            refused += "knows no padding" in str(error)
    model(tokens[:, :3].repeat(2, 1), attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]), use_cache=False)
    results[folder.name]["refused"] = refused
write = pipeline("text-generation", model=sys.argv[1] + "/position_rotary", trust_remote_code=True)
results["pipeline"] = write("the", max_new_tokens=5, do_sample=False)[0]["generated_text"]
assert not [name for name in sys.modules if name.split(".")[0] == "quillgpt"]
torch.save(results, sys.argv[2])
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("huggingface")


@pytest.mark.parametrize("settings", GPT2_SHAPED.values(), ids=GPT2_SHAPED)
def test_a_gpt2_loads_as_one(
    settings: dict, random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path, assert_close, tokens
) -> None:
    model = random_model(**settings)
    write_export(model, byte_tokenizer, tmp_path, "f32", ORIGIN)

    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tokens = tokens % model.config.vocab_size
    with torch.no_grad():
        assert_close(theirs.eval()(tokens).logits, model(tokens), 1e-6)
    assert theirs.config.resid_pdrop == model.config.dropout
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == model.config.tied_head


@pytest.mark.parametrize("bias", [True, False])
def test_the_file_has_the_weights_bit_for_bit(
    bias: bool, random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(bias=bias)
    write_export(model, byte_tokenizer, tmp_path, "f32", ORIGIN)

    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")

    block = model.blocks[1]
    assert torch.equal(stored["transformer.wte.weight"], model.token_embedding.weight[:257])
    assert torch.equal(stored["transformer.h.1.attn.c_proj.weight"], block.attention.projection.weight.T)
    assert torch.equal(stored["transformer.h.1.mlp.c_proj.weight"], block.mlp.project.weight.T)
    zeros = {name for name, tensor in stored.items() if not tensor.any()}
    assert zeros == (set() if bias else {name for name in stored if name.endswith("bias")})
    assert len(stored) == 2 + 2 * 12 + 2
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_config_is_what_others_read(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_export(random_model(), byte_tokenizer, tmp_path, "f32", ORIGIN)

    config = json.loads((tmp_path / "config.json").read_text())

    assert (config["n_positions"], config["n_ctx"], config["vocab_size"]) == (24, 24, 257)
    assert (config["eos_token_id"], config["bos_token_id"], config["torch_dtype"]) == (256, 256, "float32")
    assert (config["activation_function"], config["layer_norm_epsilon"]) == ("gelu_new", 1e-5)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (256, 256)
    card = (tmp_path / "README.md").read_text()
    for fact in ("# tiny", "| context | 24 tokens |", "| trained for | 7 steps |", "byte, 257 tokens"):
        assert fact in card


@pytest.mark.parametrize("settings", GPT2_SHAPED.values(), ids=GPT2_SHAPED)
def test_there_and_back_is_the_same_model(
    settings: dict, random_model: Callable[..., GPT], bpe_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(**(settings | {"vocab_size": bpe_tokenizer.vocab_size}))
    write_export(model, bpe_tokenizer, tmp_path, "f32", ORIGIN)

    back, tokenizer = load_model(tmp_path)

    assert tokenizer.fingerprint == bpe_tokenizer.fingerprint
    ours, theirs = model.state_dict(), back.state_dict()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not [name for name in theirs.keys() - ours.keys() if theirs[name].any()]  # biases of zeros


@pytest.fixture(scope="module")
def models() -> dict[str, GPT]:
    return {}


@pytest.fixture(scope="module")
def results(models: dict[str, GPT], random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, places: Path) -> dict:
    """What transformers makes of every variant, in a process that cannot import quillgpt."""
    folder = places / "variants"
    for name, settings in OTHERS.items():
        models[name] = random_model(**settings)
        (folder / name).mkdir(parents=True)
        write_export(models[name], byte_tokenizer, folder / name, "f32", ORIGIN)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_QUILLGPT, str(folder), str(places / "results.pt")],
        env=environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(places / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(places / "results.pt")


@pytest.mark.parametrize("name", OTHERS)
def test_it_computes_generates_and_trains_as_ours_does(
    name: str, results: dict, models: dict[str, GPT], assert_close
) -> None:
    result, model = results[name], models[name]
    tokens = torch.arange(22)[None] * 3
    with torch.no_grad():
        logits = model(tokens)
    assert in_the_way(model.config)
    assert_close(result["logits"], logits, 1e-5)
    assert_close(result["last"], logits[:, -1:], 1e-5)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert_close(result["loss"], loss, 1e-5)
    expected = tokens[:, :12]
    for _ in range(6):
        with torch.no_grad():
            following = model(expected)[:, -1].argmax(dim=-1)
        expected = torch.cat([expected, following[:, None]], dim=1)
        if int(following) == 66:
            break
    for kind in ("cached", "recomputed"):
        assert result[kind].tolist() == expected.repeat(2, 1).tolist(), kind
    assert result["refused"] == 2


def test_a_pipeline_writes_text(results: dict) -> None:
    assert results["pipeline"].startswith("the")
    assert len(results["pipeline"]) > 3


def test_its_code_is_ours_and_names_no_import_of_quillgpt(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_export(random_model(norm="rmsnorm"), byte_tokenizer, tmp_path, "f32", ORIGIN)
    code = (tmp_path / f"{MODELING}.py").read_text()
    assert not re.search(r"^\s*(from|import) quillgpt", code, re.MULTILINE)
    assert "softmax(q k^T / sqrt(D)) v over earlier positions only" in code  # docstrings stay
    assert "# C = 768: 2048" in code  # comments too


def test_random_weights_of_its_own_code_are_drawn_by_the_model(
    random_model: Callable[..., GPT], byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from quillgpt.export.huggingface import _custom_class

    model = random_model(norm="rmsnorm")
    write_export(model, byte_tokenizer, tmp_path, "f32", ORIGIN)
    kind = _custom_class(tmp_path)
    torch.manual_seed(0)
    theirs = kind(kind.config_class.from_pretrained(tmp_path))
    torch.manual_seed(0)
    ours = GPT(model.config)
    assert torch.equal(theirs.gpt.blocks[1].mlp.project.weight, ours.blocks[1].mlp.project.weight)
    assert theirs.get_input_embeddings().weight.shape == (257, 32)
    assert "quillgpt_export_being_checked" not in sys.modules


def test_a_pipeline_continues_as_quill_does(
    trained_run: Path, tmp_path: Path, greedy: Callable[[str, int], str]
) -> None:
    from transformers import pipeline

    export(str(trained_run), "huggingface", out=str(tmp_path / "out"))
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    for prompt in ("document 1", "word", "x"):
        written = write(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"]
        assert written == greedy(prompt, 20)


def test_everything_can_be_expressed() -> None:
    from quillgpt.config import ModelConfig

    for settings in [*GPT2_SHAPED.values(), *OTHERS.values()]:
        FORMAT.refuse(ModelConfig(**settings), "character", "f32")
