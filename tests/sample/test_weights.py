"""Each form of weights against an independent formula: its dequantized numbers, multiplied in float64."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import quillgpt.sample
from quillgpt.sample import torch_internals
from quillgpt.sample.weights import int4, int8, plain

SHAPES = [(64, 32), (192, 64), (5, 7), (67, 33), (176, 48), (1, 1), (100, 160)]
ROWS = [1, 2, 5, 80]
CHUNKED = [(2304, 32), (1000, 70), (68, 1024), (4098, 20)]
CASES = [*itertools.product(SHAPES, ROWS, [True, False])]


def layer(shape, *, bias=True):
    torch.manual_seed(sum(shape))
    linear = nn.Linear(shape[1], shape[0], bias=bias)
    with torch.no_grad():
        linear.weight[0] *= 30  # one large output must not take precision from the others
    return linear


def inputs(rows, shape):
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    return x * torch.logspace(-2, 2, rows)[:, None]  # and neither must one large sequence


def exact(x, weight, linear):
    """x W^T + b in float64."""
    bias = 0 if linear.bias is None else linear.bias.detach().double()
    return x.double() @ weight.double().T + bias


def int8_weight(linear):
    """The largest weight of every output is 127 steps."""
    step = linear.weight.detach().double().abs().amax(dim=1, keepdim=True) / 127
    return (linear.weight.detach().double() / step).round() * step


def int4_weight(linear):
    """A group of 32 inputs has 16 levels from its least to its largest weight, the step and the middle in bf16."""
    rows = []
    for row in linear.weight.detach():
        parts = []
        for group in nn.functional.pad(row, (0, -len(row) % 32)).view(-1, 32):
            step = max((group.max() - group.min()) / 15, torch.tensor(1e-9)).bfloat16().double()
            middle = (group.min() + step.float() * 8).bfloat16().double()
            levels = middle + step * torch.arange(-8, 8).double()
            parts.append(levels[(group.double()[:, None] - levels).abs().argmin(dim=1)])
        rows.append(torch.cat(parts)[: len(row)])
    return torch.stack(rows)


def is_close_in_bf16(y, x, weight, linear):
    """Within the rounding of inputs, products and the result to the 8 digits of bf16."""
    difference = (y.double() - exact(x, weight, linear)).abs()
    scale = x.double().abs() @ weight.double().abs().T
    bias = 0 if linear.bias is None else linear.bias.detach().double().abs()
    return bool((difference <= 2**-8 * (1.5 * scale + 2 * bias) + 1e-6).all())


def test_int8_is_the_product_of_its_integers():
    wrong = []
    for shape, rows, bias in CASES:
        linear = layer(shape, bias=bias)
        x, weight = inputs(rows, shape), int8_weight(linear)
        y = int8.as_int8(linear)(x)
        # an input is off by half a step at most, of 127: fewer than 8 bits where sums of 16 bits could overflow
        step = 2 * x.abs().amax(dim=1, keepdim=True).double() / 127
        bound = step / 2 * weight.abs().sum(dim=1) + 1e-5 * exact(x.abs(), weight.abs(), linear).abs() + 1e-6
        if y.dtype != x.dtype or not ((y - exact(x, weight, linear)).abs() <= bound).all():
            wrong.append((shape, rows, bias))
    assert wrong == []


def test_int8_weights_with_float_inputs_are_the_product_to_the_digits_of_bf16():
    wrong = []
    for shape, rows in itertools.product([(64, 32), (192, 64), (176, 48), (100, 160)], ROWS):
        linear = layer(shape)
        x = inputs(rows, shape)
        form = int8.WeightOnlyInt8Linear(*int8.quantize_int8(linear.weight), nn.Parameter(linear.bias.detach()))
        wrong += [] if is_close_in_bf16(form(x), x, int8_weight(linear), linear) else [(shape, rows)]
    assert wrong == []


def test_int4_and_bf16_are_the_products_of_their_weights_to_the_digits_of_bf16():
    levels = {(shape, bias): int4_weight(layer(shape, bias=bias)) for shape in SHAPES for bias in (True, False)}
    wrong = []
    for shape, rows, bias in CASES:
        linear, x = layer(shape, bias=bias), inputs(rows, shape)
        wrong += [] if is_close_in_bf16(int4.as_int4(linear)(x), x, levels[shape, bias], linear) else [("int4", shape)]
        linear, x = linear.bfloat16(), x.bfloat16()
        y = plain.as_plain(linear)(x)
        wrong += [] if is_close_in_bf16(y, x, linear.weight.detach(), linear) else [("bf16", shape, rows, bias)]
    assert wrong == []


def test_a_batch_does_not_change_how_a_sequence_is_rounded_in_int8():
    linear = layer((64, 32))
    x, form = inputs(5, (64, 32)), int8.as_int8(linear)
    size = x.abs().amax(dim=1, keepdim=True) * linear.weight.abs().sum(dim=1)
    assert ((form(x) - torch.cat([form(row[None]) for row in x])).abs() <= size / 64).all()


@pytest.fixture
def threads(monkeypatch):
    """Set the number of threads that torch reports, without starting them."""
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_a_chunked_product_is_the_same_product_and_shares_the_weights(threads):
    threads(2)
    wrong = []
    row_counts = [*ROWS, plain.MAX_CHUNKED_ROWS, plain.MAX_CHUNKED_ROWS + 1]
    for shape, rows, bias in itertools.product(CHUNKED, row_counts, [True, False]):
        linear = layer(shape, bias=bias)
        x, weight = inputs(rows, shape)[:, None], linear.weight.detach()  # as in a step of several sequences
        form = plain.as_plain(linear)
        y = form(x)
        bound = 2e-6 * exact(x.abs(), weight.abs(), linear).abs() + 1e-6
        is_right = type(form) is plain.FP32Linear and form.weight.data_ptr() == weight.data_ptr()
        is_right &= y.shape == (rows, 1, shape[0])
        if not is_right or not ((y - exact(x, weight, linear)).abs() <= bound).all():
            wrong.append((shape, rows, bias))
    assert wrong == []


def test_few_rows_are_multiplied_in_chunks_on_several_threads_only(monkeypatch, threads):
    threads(2)
    linear = layer(CHUNKED[0])
    form, shapes, bmm = plain.as_plain(linear), [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, chunks: shapes.append((x.shape, chunks.shape)) or bmm(x, chunks))
    form(inputs(1, CHUNKED[0]))
    assert shapes == [((16, 1, 32), (16, 32, 2304 // 16))]
    assert form(inputs(17, CHUNKED[0])).equal(linear(inputs(17, CHUNKED[0])))
    threads(1)
    assert form(inputs(1, CHUNKED[0])).equal(linear(inputs(1, CHUNKED[0])))
    assert len(shapes) == 1


def test_a_layer_that_gains_nothing_from_chunks_is_not_changed():
    for shape, dtype in (((8, 8), torch.float32), ((2305, 64), torch.float32), ((2304, 32), torch.float64)):
        linear = layer(shape).to(dtype)
        assert plain.as_plain(linear) is linear, shape
    linear = layer((2304, 64))
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)  # stored by columns
    assert plain.as_plain(linear) is linear


def test_rows_of_another_width_are_refused(threads):
    threads(2)
    for bias in (True, False):
        with pytest.raises(RuntimeError):
            plain.as_plain(layer((2304, 64), bias=bias))(torch.zeros(2, 32))


def test_the_compiled_product_of_one_row_is_a_matvec():
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    for dtype, bias in itertools.product([torch.float32, torch.bfloat16], [True, False]):
        linear, x = layer(CHUNKED[0], bias=bias).to(dtype), inputs(1, CHUNKED[0]).to(dtype)
        graphs.clear()
        torch._dynamo.reset()
        y = torch.compile(plain.as_plain(linear), backend=backend)(x)
        assert is_close_in_bf16(y, x, linear.weight.detach(), linear), (dtype, bias)
        assert y.dtype == dtype
        assert len(graphs) == 1
        assert "linear" not in graphs[0].replace("linear_", "")
    torch._dynamo.reset()


def test_a_matvec_of_float64_keeps_its_digits():
    linear, x = layer((2304, 64)).double(), inputs(1, (2304, 64)).double()
    torch.testing.assert_close(plain.matvec(x, linear.weight, linear.bias), linear(x), rtol=1e-12, atol=1e-12)


def test_onednn_is_enabled_again_also_after_an_error():
    def fail():
        with torch_internals.WithoutOneDNN():
            assert not torch._C._get_mkldnn_enabled()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert torch._C._get_mkldnn_enabled()


def test_private_torch_names_are_in_one_module():
    private = re.compile(r"torch\._(?!_)|torch\.ops|FunctionType|unsafe")
    folder = Path(quillgpt.sample.__file__).parent
    assert [path.name for path in folder.rglob("*.py") if private.search(path.read_text())] == ["torch_internals.py"]
