"""README.md of an exported directory: what the model is, in a dozen lines."""

from importlib.metadata import version

from quillgpt.config import ModelConfig
from quillgpt.export.format import Origin
from quillgpt.model.sizes import parameter_count
from quillgpt.tokenizer import Tokenizer

FRONT_MATTER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- quillgpt\n---\n"


def model_card(config: ModelConfig, tokenizer: Tokenizer, origin: Origin, *, is_gpt2: bool, usage: str) -> str:
    """The page that a hub shows; licence and training text are for the owner to add."""
    kind = "GPT-2's network" if is_gpt2 else "a GPT whose code is in this directory"
    facts = {
        "parameters": f"{parameter_count(config):,}",
        "layers, heads, channels": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "context": f"{config.context_length:,} tokens",
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens",
        "attention, mlp, norm, positions": f"{config.attention}, {config.mlp}, {config.norm}, {config.position}",
        "trained for": "not known" if origin.step is None else f"{origin.step:,} steps",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"{FRONT_MATTER}\n# {origin.name}\n\n"
        f"A language model, {kind}, exported by quillgpt {version('quillgpt')}.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n```python\n{usage}\n```\n"
    )
