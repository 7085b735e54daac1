"""Compute one attention head of a trained model on encrypted numbers, compare it, and list what is not a polynomial."""

import argparse
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from quillgpt import load_model
from quillgpt.errors import CheckError, QuillError, require

if find_spec("tenseal") is None:
    sys.exit("check.py: tenseal is missing: pip install 'quillgpt[he]'")
import circuit
import survey

TEXT = 10 * "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun. "


def main(arguments: list[str]) -> None:
    """Print the comparison and the survey; an error above the tolerance is a `CheckError`."""
    parser = argparse.ArgumentParser("check.py", usage=argparse.SUPPRESS, description=__doc__)  # errors: one line
    parser.add_argument("model", help="a run, a checkpoint or a model's name")
    parser.add_argument("--layer", type=int, default=0, help="from 0 (default: 0)")
    parser.add_argument("--head", type=int, default=0, help="from 0 (default: 0)")
    parser.add_argument("--length", type=int, default=8, help="positions to encrypt (default: 8)")
    parser.add_argument("--prompt", default=TEXT, help="text to use (default: an English sentence)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="part of the largest output (default: 1e-4)")
    parser.add_argument("--survey", action="store_true", help="only the survey, of a model with any attention")
    options = parser.parse_args(arguments)
    require("tolerance", options.tolerance, 0 < options.tolerance < 1, "above 0 and below 1")
    model, tokenizer = load_model(options.model)
    tokens = torch.tensor(tokenizer.encode(options.prompt)[: min(256, model.config.context_length)])
    require("length", options.length, 1 <= options.length <= len(tokens), f"1 to {len(tokens)}, the tokens of the text")
    inputs = survey.module_inputs(model.double().requires_grad_(False), tokens)
    error = 0.0 if options.survey else check_head(model, inputs, options.layer, options.head, options.length)
    parts = survey.survey(model, inputs)
    print(f"{'part':34}times  levels  replaced by a polynomial")
    for name in dict.fromkeys(part.name for part in parts):
        depths, approximations = zip(*[part[1:] for part in parts if part.name == name], strict=True)
        worst = [max(places, key=lambda one: one.degree) for places in zip(*approximations, strict=True)]
        described = [f"{one.function}: degree {one.degree}, {one.low:.3g} to {one.high:.3g}" for one in worst]
        print(f"{name:34}{len(depths):5}  {max(depths):6}  {'; '.join(described)}".rstrip())
    print(f"all of the model takes {sum(part.depth for part in parts)} levels")
    if not error <= options.tolerance:  # also for NaN
        raise CheckError(f"the encrypted head differs by {error:.1e}; the tolerance is {options.tolerance:.1e}")


def check_head(model: Any, inputs: dict[str, Any], layer: int, head: int, length: int) -> float:
    """Print depth, time and error of a head; return the largest error as a part of the largest output."""
    config, kernel = model.config, circuit.polynomial_kernel(model.config, length)
    remedy = "gaussian-poly-N or pointwise-identity (recipe polynomial); --survey accepts any attention"
    require("attention", config.attention, kernel is not None, f"a polynomial: {remedy}")
    require("layer", layer, 0 <= layer < config.n_layer, f"0 to {config.n_layer - 1}")
    require("head", head, 0 <= head < config.n_head, f"0 to {config.n_head - 1}")
    sent = [part[0, head, :length].numpy() for part in inputs[f"blocks.{layer}.heads"]]
    plain = inputs[f"blocks.{layer}.attention.projection"][0][0].chunk(config.n_head, dim=-1)[head][:length].numpy()
    layout = circuit.Layout(length, plain.shape[1], circuit.RING // 2)
    require("length", length, layout.lanes * layout.period <= layout.slots, f"at most {layout.slots // layout.period}")

    started = time.perf_counter()
    ckks = circuit.CKKS(kernel.depth, [-1, *layout.rotations])
    largest = np.abs(plain).max()
    if not 0 < largest < ckks.largest_number:
        raise CheckError(f"largest output: {largest:.3g} (must be above 0 and below {ckks.largest_number:,.0f})")
    keys_made = time.perf_counter()
    encrypted = [ckks.encrypt(layout.packed(each)) for each in sent]
    result = circuit.attend(ckks, layout, kernel, *encrypted)
    seconds = time.perf_counter() - keys_made
    error = np.abs(layout.unpacked(ckks.decrypt(result)) - plain).max()
    depth = ckks.level(encrypted[0]) - ckks.level(result)
    print(f"{config.attention}, layer {layer}, head {head}: queries, keys and values {length} x {plain.shape[1]}")
    print(f"depth: {depth} levels of the {circuit.MAX_DEPTH} that 128-bit secure CKKS has without bootstrapping")
    print(f"time: keys {keys_made - started:.2f} s, encryption and evaluation {seconds:.2f} s")
    print(f"error: {error:.1e} at most; the largest output is {largest:.3g}\n")
    return error / largest


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except QuillError as error:
        print(f"check.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
