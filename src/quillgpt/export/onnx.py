"""Exporter `onnx`: a graph for onnxruntime, tokens (B, T) int64 -> logits (B, T, V) float32, for any B and T.

T is at most context_length. A model that torch cannot write is refused with the name of its attention.
"""

from pathlib import Path
from typing import Any

import torch

from quillgpt import files
from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError
from quillgpt.export import Format, Origin, Written, quiet
from quillgpt.export.gpt2 import PADDED
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import FILE_NAME, Tokenizer

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
LARGEST_FILE = 1 << 30
"""bytes; larger weights are written to a file of their own, because an ONNX file can hold 2 GB at most"""
SMALLEST_MOVED = 1024
"""bytes; smaller values may be shapes, which onnxruntime expects in the graph"""


def write_export(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str, origin: Origin) -> str:
    """Write model.onnx, model.onnx.data if the weights are large, and tokenizer.json."""
    files.write_text(folder / FILE_NAME, tokenizer.to_json())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in PADDED:
                parameter.data = parameter.data[: model.config.vocab_size]
    program = trace(model)
    values = [value for value in program.model.graph.initializers.values() if value.const_value is not None]
    if sum(value.const_value.nbytes for value in values) > LARGEST_FILE:
        move_weights([value for value in values if value.const_value.nbytes >= SMALLEST_MOVED], folder / WEIGHTS)
    with files.written_file(folder / GRAPH) as file:
        file.write(program.model_proto.SerializeToString())
    return "a graph, input_ids (batch, length) -> logits (batch, length, vocabulary)"


def trace(model: GPT) -> Any:
    """The model as torch's `ONNXProgram`."""
    from torch.export import Dim

    longest = model.config.context_length
    shapes: dict[int, Any] = {0: Dim("batch")} | ({1: Dim("length", max=longest)} if longest > 1 else {})
    example = torch.zeros(2, min(3, longest), dtype=torch.int64)
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(
                model.eval(),
                (example,),
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes=(shapes,),
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
    """Write the weights to a separate file, one after the other, and make the graph refer to it."""
    from onnx_ir import ExternalTensor

    offset = 0
    with files.written_file(path) as file:
        for value in values:
            content, dtype, shape = value.const_value.tobytes(), value.const_value.dtype, value.const_value.shape
            file.write(content)
            value.const_value = ExternalTensor(
                path.name, offset, len(content), dtype, name=value.name, shape=shape, base_dir=str(path.parent)
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


def usage(config: ModelConfig, dtype: str, path: str) -> str:
    """Compute the logits of a text."""
    return (
        "import onnxruntime, tokenizers\n"
        f'tokens = tokenizers.Tokenizer.from_file("{path}/{FILE_NAME}").encode("Once upon a time").ids\n'
        f'logits = onnxruntime.InferenceSession("{path}/{GRAPH}").run(None, {{"input_ids": [tokens]}})[0]'
    )


FORMAT = Format(write=write_export, read=read, usage=usage)
