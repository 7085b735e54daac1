"""Loading 124M takes little more memory than the weights, measured by the system in a new process."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import PUBLISHED_PARAMETERS, SIZES
from quillgpt.pretrained.gpt2_names import to_hugging_face

MOST = 1.2
"""times the bytes of the weights, mapped pages included"""

MEASURED = """
import re, sys
from pathlib import Path
from quillgpt.pretrained.source import load_model_from
from quillgpt.pretrained.hugging_face import open_hugging_face

def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = kilobytes("VmRSS")
model, _ = load_model_from(open_hugging_face(Path(sys.argv[1])))
assert not model.training
print((kilobytes("VmHWM") - before) * 1024)
"""


def write_zeros_in_their_format(directory: Path, dtype: str) -> None:
    """A model.safetensors of 124M zeros with OpenAI's masks: a sparse file, which takes no room on the disk."""
    config = SIZES["gpt2"]
    with torch.device("meta"):
        model = GPT(config)
    header, end = {}, 0

    def add(name: str, shape: tuple[int, ...]) -> None:
        nonlocal end
        size = math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size

    for name, parameter in model.named_parameters():
        theirs, is_transposed = to_hugging_face(name)
        shape = tuple((parameter.T if is_transposed else parameter).shape)
        add(theirs, (config.vocab_size, config.n_embd) if name == "token_embedding.weight" else shape)
    for layer in range(config.n_layer):
        add(f"transformer.h.{layer}.attn.bias", (1, 1, 1024, 1024))
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_loading_124m_takes_at_most_1_2_times_the_weights(tmp_path: Path, dtype: str) -> None:
    write_zeros_in_their_format(tmp_path, dtype)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    growth = int(re.findall(r"\d+", result.stdout)[-1])
    weights = 4 * PUBLISHED_PARAMETERS["gpt2"]
    assert 0.9 * weights < growth <= MOST * weights, growth / weights
