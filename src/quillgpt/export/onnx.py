"""Entry `onnx`: a graph for onnxruntime, tokens (B, T) int64 in, logits (B, T, V) float32 out, for any B and T.

T is at most context_length. What torch cannot write is refused, naming the attention.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quillgpt import files
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.export.format import Format, Origin, Written
from quillgpt.export.gpt2_shape import PADDED
from quillgpt.export.quiet import quiet
from quillgpt.export.tokenizer_files import write
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import FILE_NAME, Tokenizer

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
LARGEST_FILE = 1 << 30
"""bytes of weights from which on they get a file of their own; one file can hold 2 GB at most"""
SMALLEST_MOVED = 1024
"""bytes; what is smaller may be a shape, which onnxruntime wants in the graph"""


class Logits(nn.Module):
    """The model as the graph has it: one input, one output, no cache."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        return self.model(input_ids)


def refuse(config: ModelConfig, tokenizer: str, dtype: str) -> None:
    """Nothing is known beforehand to be impossible."""


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> None:
    """Write model.onnx, model.onnx.data where the weights are large, and tokenizer.json."""
    write(folder / FILE_NAME, tokenizer.to_json())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in PADDED:
                parameter.data = parameter.data[: model.config.vocab_size]
    program = traced(model)
    values = [value for value in program.model.graph.initializers.values() if value.const_value is not None]
    if sum(value.const_value.nbytes for value in values) > LARGEST_FILE:
        move_weights([value for value in values if value.const_value.nbytes >= SMALLEST_MOVED], folder / WEIGHTS)
    with files.written_file(folder / GRAPH) as file:
        file.write(program.model_proto.SerializeToString())


def traced(model: GPT) -> Any:
    """The model as torch's `ONNXProgram`."""
    from torch.export import Dim

    longest = model.config.context_length
    shapes: dict[int, Any] = {0: Dim("batch")} | ({1: Dim("length", max=longest)} if longest > 1 else {})
    example = torch.zeros(2, min(3, longest), dtype=torch.int64)
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(
                Logits(model).eval(),
                (example,),
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": shapes},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        setting = f"attention = {model.config.attention!r}"
        raise ConfigError(f"onnx: torch cannot write a model with {setting}: {str(cause).splitlines()[0]}") from error


def move_weights(values: list[Any], path: Path) -> None:
    """Write the weights into a file of their own, one after the other, and let the graph point there."""
    from onnx_ir import ExternalTensor

    offset = 0
    with files.written_file(path) as file:
        for value in values:
            content = value.const_value.tobytes()
            file.write(content)
            value.const_value = ExternalTensor(
                path.name,
                offset,
                len(content),
                value.const_value.dtype,
                name=value.name,
                shape=value.const_value.shape,
                base_dir=str(path.parent),
            )
            offset += len(content)


def read(folder: Path) -> Written:
    """The graph in onnxruntime on the CPU, and the tokenizer in `tokenizers`."""
    import onnxruntime
    import tokenizers

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / FILE_NAME))
    return Written(
        logits=lambda tokens: torch.from_numpy(session.run(["logits"], {"input_ids": tokens.numpy()})[0]),
        encode=lambda text: tokenizer.encode(text).ids,
    )


def describe(config: ModelConfig) -> str:
    """What the model becomes."""
    return "a graph, input_ids (batch, length) -> logits (batch, length, vocabulary)"


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """How to get the logits of a text."""
    return (
        "import onnxruntime, tokenizers\n"
        f'tokens = tokenizers.Tokenizer.from_file("{path}/{FILE_NAME}").encode("Once upon a time").ids\n'
        f'logits = onnxruntime.InferenceSession("{path}/{GRAPH}").run(None, {{"input_ids": [tokens]}})[0]'
    )


FORMAT = Format(
    refuse=refuse,
    write=write_export,
    read=read,
    describe=describe,
    usage=usage,
    tolerance={"f32": 1e-5},
)
