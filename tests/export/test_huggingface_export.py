"""Exporter `huggingface`: transformers loads what was written, computes the same, and does not need quillgpt."""

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from transformers import GPT2LMHeadModel, pipeline
from transformers.dynamic_module_utils import get_relative_imports

from quillgpt.checkpoint import load_model
from quillgpt.config import ModelConfig
from quillgpt.export import Origin
from quillgpt.export.export import export
from quillgpt.export.gpt2 import not_gpt2
from quillgpt.export.huggingface import custom_class, standalone_modules, write_export
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT, RESIDUALS
from quillgpt.model.initialization import INITIALIZATIONS
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
Build = Callable[..., GPT]

WITHOUT_QUILLGPT = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "quillgpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM, pipeline

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
            refused += "does not support padding" in str(error)
    model(tokens[:, :3].repeat(2, 1), attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]), use_cache=False)
    results[folder.name]["refused"] = refused
model.save_pretrained(sys.argv[2] + "/saved")
again = AutoModelForCausalLM.from_pretrained(sys.argv[2] + "/saved", trust_remote_code=True)
with torch.no_grad():
    results[folder.name]["saved and loaded"] = again(tokens).logits
write = pipeline("text-generation", model=sys.argv[3], trust_remote_code=True)
results["pipeline"] = write("the", max_new_tokens=5, do_sample=False)[0]["generated_text"]
assert not [name for name in sys.modules if name.split(".")[0] == "quillgpt"]
torch.save(results, sys.argv[2] + "/results.pt")
"""


def pairwise(menus: dict[str, list]) -> list[dict]:
    """Settings in which every value of each menu occurs together with every value of every other menu."""
    missing = {
        frozenset([(a, x), (b, y)]) for a, b in itertools.combinations(menus, 2) for x in menus[a] for y in menus[b]
    }
    rows = []
    while missing:
        row = dict(sorted(min(missing, key=lambda pair: sorted(map(str, pair))), key=str))
        for name in [name for name in menus if name not in row]:
            gain = {x: sum(frozenset([(name, x), held]) in missing for held in row.items()) for x in menus[name]}
            row[name] = max(gain, key=gain.__getitem__)
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows


def variants() -> dict[str, dict]:
    """Every pair of flags and of values of small menus, with the attentions and MLPs in turn."""
    flags = {x.name: [not x.default, x.default] for x in dataclasses.fields(ModelConfig) if isinstance(x.default, bool)}
    small = {"norm": NORMS, "position": POSITIONS, "residual": RESIDUALS, "initialization": INITIALIZATIONS}
    others = {"logit_softcap": [3.0, 0.0], "dropout": [0.1, 0.0], "vocab_size": [67, 257]}
    rows = pairwise({name: list(menu) for name, menu in small.items()} | flags | others)
    turns = zip(range(max(len(rows), len(ATTENTION))), *map(itertools.cycle, (rows, ATTENTION, MLPS)), strict=False)
    return {f"{i:02}": row | {"attention": attention, "mlp": mlp} for i, row, attention, mlp in turns}


def test_a_gpt2_loads_as_one_and_comes_back_bit_for_bit(
    random_model: Build, bpe_tokenizer: Tokenizer, tmp_path: Path, tokens: torch.Tensor, difference: Callable
) -> None:
    for name, settings in GPT2_SHAPED.items():
        folder, model = tmp_path / name, random_model(**settings)
        folder.mkdir()
        write_export(model, bpe_tokenizer, folder, "f32", ORIGIN)
        theirs, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
        assert not [report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]], name
        batch = tokens % model.config.vocab_size
        with torch.no_grad():
            assert difference(theirs.eval()(batch).logits, model(batch)) <= 1e-6, name
        assert theirs.config.resid_pdrop == model.config.dropout
        assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == model.config.tied_head

        folder, model = tmp_path / f"{name}, bpe", random_model(**(settings | {"vocab_size": 290}))
        folder.mkdir()
        write_export(model, bpe_tokenizer, folder, "f32", ORIGIN)
        back, tokenizer = load_model(folder)
        assert tokenizer.fingerprint == bpe_tokenizer.fingerprint
        ours, loaded = model.state_dict(), back.state_dict()
        assert not [key for key in ours if not torch.equal(ours[key], loaded[key])], name
        assert not [key for key in loaded.keys() - ours.keys() if loaded[key].any()], name  # biases of zeros


def test_the_files_are_what_others_read(random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    for bias in (False, True):
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
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["n_positions"], config["n_ctx"], config["vocab_size"]) == (24, 24, 257)
    assert (config["eos_token_id"], config["bos_token_id"], config["torch_dtype"]) == (256, 256, "float32")
    assert (config["activation_function"], config["layer_norm_epsilon"]) == ("gelu_new", 1e-5)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (256, 256)
    card = (tmp_path / "README.md").read_text()
    for fact in ("# tiny", "| context | 24 tokens |", "| trained for | 7 steps |", "byte, 257 tokens"):
        assert fact in card


def test_every_variant_computes_generates_and_trains_without_quillgpt(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path, difference: Callable
) -> None:
    folder = tmp_path / "variants"
    for name, settings in variants().items():
        (folder / name).mkdir(parents=True)
        write_export(random_model(**settings), byte_tokenizer, folder / name, "f32", ORIGIN)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    of_bytes = folder / next(name for name, settings in variants().items() if settings["vocab_size"] == 257)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_QUILLGPT, str(folder), str(tmp_path), str(of_bytes)],
        env=environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(tmp_path / "results.pt")
    written = results.pop("pipeline")
    assert written.startswith("the")
    assert len(written) > 3
    tokens, wrong = torch.arange(22)[None] * 3, {}
    for name, settings in variants().items():
        model, result = random_model(**settings), results.pop(name)
        assert not_gpt2(model.config)
        with torch.no_grad():
            logits, text = model(tokens), tokens[:, :12]
            while text.shape[1] < 18 and (text.shape[1] == 12 or int(text[0, -1]) != 66):
                text = torch.cat([text, model(text)[:, -1:].argmax(dim=-1)], dim=1)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
        expected = {"logits": logits, "last": logits[:, -1:], "loss": loss, "saved and loaded": logits}
        wrong[name] = [key for key in expected.keys() & result.keys() if difference(result[key], expected[key]) > 1e-5]
        wrong[name] += [x for x in ("cached", "recomputed") if result[x].tolist() != text.repeat(2, 1).tolist()]
        wrong[name] += [] if result["refused"] == 2 else ["padding"]
    assert not {name: (keys, variants()[name]) for name, keys in wrong.items() if keys}
    assert "saved and loaded" in result
    assert not results


def test_its_code_is_ours_with_docstrings_and_comments(
    random_model: Build, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(norm="rmsnorm")
    write_export(model, byte_tokenizer, tmp_path, "f32", ORIGIN)
    source = Path(__file__).parents[2] / "src" / "quillgpt" / "model" / "mlp.py"
    changed = {"from quillgpt.": "from .quillgpt_", "quillgpt_model.": "quillgpt_model_"}
    expected = source.read_text()
    for old, new in changed.items():
        expected = expected.replace(old, new)
    assert (tmp_path / "quillgpt_model_mlp.py").read_text().split("\n", 1)[1] == expected
    kind = custom_class(tmp_path)
    torch.manual_seed(0)
    theirs = kind(kind.config_class.from_pretrained(tmp_path))
    torch.manual_seed(0)
    assert torch.equal(theirs.gpt.blocks[1].mlp.project.weight, GPT(model.config).blocks[1].mlp.project.weight)
    assert theirs.get_input_embeddings().weight.shape == (257, 32)
    assert custom_class(tmp_path) is not kind  # no code of an earlier export is used again


def test_a_pipeline_continues_as_quill_does(
    trained_run: Path, tmp_path: Path, greedy: Callable[[str, int], str]
) -> None:
    export(str(trained_run), "huggingface", out=str(tmp_path / "out"))
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    for prompt in ("document 1", "word", "x"):
        written = write(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"]
        assert written == greedy(prompt, 20)


class TestStandaloneModules:
    """Modules of a package `small` as files that need no package."""

    @pytest.fixture
    def small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
        """Write the modules of the package, and return the standalone sources of small.root."""
        monkeypatch.syspath_prepend(tmp_path / "installed")
        for name in [name for name in sys.modules if name.split(".")[0] == "small"]:
            monkeypatch.delitem(sys.modules, name)

        def write(**modules: str) -> dict[str, str]:
            for name, text in ({"__init__": ""} | modules).items():
                path = tmp_path / "installed" / "small" / f"{name.replace('__of__', '/')}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return standalone_modules("small.root")

        return write

    def test_imports_are_followed_in_every_place(
        self, small: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = '"""from small.absent import x"""\n'
        sources = small(
            root=f"{text}from small.menu import (\n MENU as menu,\n other,\n)\n\nRESULT = menu['f'](5) + other.L\n",
            menu__of____init__="from small.menu import entry as e\n\nMENU = {'f': e.f}\n",
            menu__of__other="L = 100\n",
            menu__of__entry="K = 1\n\n\ndef f(x):\n    from small.late import K as late\n\n    return x + K + late\n",
            late="from small.root import __name__ as circular\n\nK = 10\n",
            unused="",
        )
        assert set(sources) == {"small_root", "small_menu", "small_menu_entry", "small_menu_other", "small_late"}
        assert text in sources["small_root"]
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        assert set(get_relative_imports(tmp_path / "small_root.py")) == {"small_menu", "small_menu_other"}
        package = ModuleType("copied")
        package.__path__ = [str(tmp_path)]
        monkeypatch.setitem(sys.modules, "copied", package)
        monkeypatch.setitem(sys.modules, "small", None)  # importing it is an error
        assert importlib.import_module("copied.small_root").RESULT == 116

    def test_other_imports_and_equal_file_names_are_refused(self, small: Callable[..., dict[str, str]]) -> None:
        for text in ("import small.two", "from small import two", "import math, small"):
            with pytest.raises(ValueError, match=r"small\.root, line 2: invalid import"):
                small(root=f"\n{text}\n", two="")
        with pytest.raises(ValueError, match=r"small\.a_b and small\.a\.b have the same file name small_a_b\.py"):
            small(root="from small.a_b import x\nfrom small.a.b import x\n", a_b="", a__of____init__="", a__of__b="")
