"""Each form of weights against an independent formula: its dequantised numbers, multiplied in float64."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from quillgpt.config import ModelConfig
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.model.attention import ATTENTION
from quillgpt.model.gpt import GPT
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.model.residual import RESIDUALS
from quillgpt.sample.generator import Generator, RecomputingGenerator, continued
from quillgpt.sample.prepare import prepared
from quillgpt.sample.settings import SamplingSettings
from quillgpt.sample.weights import WEIGHTS, int4, int8, plain
from quillgpt.sample.weights.int8_fallback import WeightOnlyInt8Linear

SHAPES = [(64, 32), (192, 64), (5, 7), (67, 33), (176, 48), (1, 1), (100, 160)]
ROWS = [1, 2, 5, 80]
PROMPT = [3, 1, 4, 1, 5]


def layer(shape, *, bias=True):
    torch.manual_seed(sum(shape))
    linear = nn.Linear(shape[1], shape[0], bias=bias)
    with torch.no_grad():
        linear.weight[0] *= 30  # an output of another size must not take the others' digits
    return linear


def inputs(rows, shape):
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    return x * torch.logspace(-2, 2, rows)[:, None]  # and neither must a sequence


def exact(x, weight, linear):
    """x W^T + b in float64."""
    bias = 0 if linear.bias is None else linear.bias.detach().double()
    return x.double() @ weight.double().T + bias


def int8_weight(linear):
    """Every output's largest weight is 127 steps."""
    step = linear.weight.detach().double().abs().amax(dim=1, keepdim=True) / 127
    return (linear.weight.detach().double() / step).round() * step


def int4_weight(linear):
    """A group of 32 inputs has 16 levels from its least weight to its largest, the step and the middle in bf16."""
    rows = []
    for row in linear.weight.detach():
        filled = nn.functional.pad(row, (0, -len(row) % 32)).view(-1, 32)
        parts = []
        for group in filled:
            step = max((group.max() - group.min()) / 15, torch.tensor(1e-9)).bfloat16().double()
            middle = (group.min() + step.float() * 8).bfloat16().double()
            levels = middle + step * torch.arange(-8, 8).double()
            nearest = (group.double()[:, None] - levels).abs().argmin(dim=1)
            parts.append(levels[nearest])
        rows.append(torch.cat(parts)[: len(row)])
    return torch.stack(rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_product_of_its_whole_numbers(shape, rows, bias):
    linear = layer(shape, bias=bias)
    x, weight = inputs(rows, shape), int8_weight(linear)

    y = int8.as_int8(linear)(x)

    # an input is off by half a step at most, of 127 (fewer than 8 bits are used where sums of 16 bits could overflow)
    step = 2 * x.abs().amax(dim=1, keepdim=True).double() / 127
    bound = step / 2 * weight.abs().sum(dim=1) + 1e-5 * exact(x.abs(), weight.abs(), linear).abs() + 1e-6
    assert y.dtype == x.dtype
    assert ((y - exact(x, weight, linear)).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(64, 32), (192, 64), (176, 48), (100, 160)], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_int8_without_products_of_whole_numbers_is_the_same_to_the_digits_of_bf16(shape, rows):
    linear = layer(shape)
    x, weight = inputs(rows, shape), int8_weight(linear)

    y = WeightOnlyInt8Linear(*int8.rounded(linear.weight), nn.Parameter(linear.bias.detach()))(x)

    assert_close_in_bf16(y, x, weight, linear)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_int4_is_the_product_of_its_levels(shape, rows, bias):
    linear = layer(shape, bias=bias)
    x = inputs(rows, shape)

    y = int4.as_int4(linear)(x)

    assert_close_in_bf16(y, x, int4_weight(linear), linear)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_bf16_is_the_product_of_its_weights_by_every_kernel(shape, rows, bias):
    linear = layer(shape, bias=bias).bfloat16()
    x = inputs(rows, shape).bfloat16()

    y = plain.as_plain(linear)(x)

    assert_close_in_bf16(y, x, linear.weight.detach(), linear)


def assert_close_in_bf16(y, x, weight, linear):
    """Within the rounding of inputs, products and the result to bf16's 8 digits."""
    difference = (y.double() - exact(x, weight, linear)).abs()
    scale = x.double().abs() @ weight.double().abs().T
    bias = 0 if linear.bias is None else linear.bias.detach().double().abs()
    assert (difference <= 2**-8 * (1.5 * scale + 2 * bias) + 1e-6).all()


def test_the_switch_for_one_row_is_put_back_also_after_an_error():
    def fail():
        with plain.OneRow():
            assert not torch._C._get_mkldnn_enabled()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert torch._C._get_mkldnn_enabled()


IN_PARTS = [(2304, 32), (1000, 70), (68, 1024), (4098, 20)]


@pytest.mark.parametrize("shape", IN_PARTS, ids=str)
@pytest.mark.parametrize("rows", [*ROWS, plain.FEW_ROWS_IN_PARTS, plain.FEW_ROWS_IN_PARTS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_fp32_in_parts_is_the_same_product(shape, rows, bias, threads):
    threads(2)
    linear = layer(shape, bias=bias)
    x = inputs(rows, shape)[:, None]  # as in a step of several sequences

    y = plain.as_plain(linear)(x)

    bound = 2e-6 * exact(x.abs(), linear.weight.detach().abs(), linear).abs() + 1e-6
    assert type(plain.as_plain(linear)) is plain.SingleLinear
    assert y.shape == (rows, 1, shape[0])
    assert ((y - exact(x, linear.weight.detach(), linear)).abs() <= bound).all()
    assert plain.as_plain(linear).weight.data_ptr() == linear.weight.data_ptr()


@pytest.fixture
def threads(monkeypatch):
    """As many as are said, without starting them."""
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_one_row_is_multiplied_in_parts_and_a_prompt_is_not(monkeypatch, threads):
    threads(2)
    linear = layer(IN_PARTS[0])
    in_parts, products = plain.as_plain(linear), []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, parts: products.append((x.shape, parts.shape)) or real(x, parts))
    in_parts(inputs(1, IN_PARTS[0]))
    assert products == [((16, 1, 32), (16, 32, 2304 // 16))]
    assert in_parts(inputs(17, IN_PARTS[0])).equal(linear(inputs(17, IN_PARTS[0])))
    threads(1)
    assert in_parts(inputs(1, IN_PARTS[0])).equal(linear(inputs(1, IN_PARTS[0])))
    assert len(products) == 1


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), torch.float32), ((2305, 64), torch.float32), ((2304, 32), torch.float64)], ids=str
)
def test_what_gains_nothing_from_parts_is_left_as_it_is(shape, dtype):
    linear = layer(shape).to(dtype)
    assert plain.as_plain(linear) is linear


def test_a_matrix_that_lies_by_columns_cannot_be_cut_and_is_left_as_it_is():
    linear = layer((2304, 64))
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)
    assert plain.as_plain(linear) is linear


def test_weights_made_float64_later_keep_their_digits_when_written_out():
    linear = layer((2304, 64)).double()
    x = inputs(1, (2304, 64)).double()
    torch.testing.assert_close(plain.written_out(x, linear.weight, linear.bias), linear(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_another_width_are_refused_and_not_cut_anew(bias, threads):
    threads(2)
    in_parts = plain.as_plain(layer((2304, 64), bias=bias))
    with pytest.raises(RuntimeError):
        in_parts(torch.zeros(2, 32))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiler_is_given_the_product_of_one_row_written_out(dtype, bias):
    linear = layer(IN_PARTS[0], bias=bias).to(dtype)
    ready, graphs = plain.as_plain(linear), []
    torch._dynamo.reset()
    compiled = torch.compile(ready, backend=lambda graph, inputs: graphs.append(str(graph.graph)) or graph)
    x = inputs(1, IN_PARTS[0]).to(dtype)
    assert_close_in_bf16(compiled(x), x, linear.weight.detach(), linear)
    assert compiled(x).dtype == dtype
    assert len(graphs) == 1
    assert "linear" not in graphs[0].replace("linear_", "")
    torch._dynamo.reset()


VARIANTS = [
    *({"attention": name} for name in ATTENTION),
    *({"mlp": name, "norm": norm} for name, norm in itertools.product(MLPS, NORMS)),
    *({"position": name, "residual": other} for name, other in itertools.product(POSITIONS, RESIDUALS)),
    {"value_embeddings": True, "qk_norm": True, "embedding_norm": True, "logit_softcap": 15.0, "bias": False},
    {"tied_head": False, "n_embd": 20, "vocab_size": 3},
    {"n_embd": 6, "n_head": 3, "vocab_size": 1},
]


def tiny(**changes):
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": 50}
    torch.manual_seed(0)
    return GPT(ModelConfig(**(shape | changes))).eval()


FORMS = {
    "bf16": {"dtype": torch.bfloat16},
    **{name: {"quantize": name} for name in WEIGHTS},
    "int8, bf16": {"quantize": "int8", "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_menu_entry_generates_with_every_form_of_weights(changes, form):
    model = tiny(**changes)
    ready = prepared(model, **FORMS[form])
    settings = SamplingSettings(temperature=1.0, top_k=0, max_new_tokens=20)
    steps = list(continued(Generator(ready), [0, 0], settings, range(2)))
    prompt = torch.zeros(1, 9, dtype=torch.int64)
    difference = (Generator(ready).prefill(prompt).float() - Generator(model).prefill(prompt)).abs().max()
    assert len(steps) == 20
    assert all(((tokens >= 0) & (tokens < model.config.vocab_size)).all() for tokens in steps)
    assert difference <= (1e-5 if form == "none" else 0.1)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "none"])
def test_decoding_follows_the_uncached_model_of_the_same_weights(form):
    ready = prepared(tiny(context_length=12), **FORMS[form])
    cached, recomputed = Generator(ready), RecomputingGenerator(ready)
    tokens = torch.randint(0, 50, (1, 30), generator=torch.Generator().manual_seed(2))
    logits = [(cached.prefill(tokens[:, :4]), recomputed.prefill(tokens[:, :4]))]
    logits += [(cached.decode(tokens[:, place]), recomputed.decode(tokens[:, place])) for place in range(4, 30)]
    for one, other in logits:
        torch.testing.assert_close(one.float(), other.float(), atol=0.02, rtol=0)


def test_the_model_that_was_prepared_stays_as_it_was():
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for options in FORMS.values():
        prepared(model, **options)
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_another_form_weights_are_shared_and_not_copied():
    model = tiny()
    assert prepared(model).token_embedding.weight.data_ptr() == model.token_embedding.weight.data_ptr()


def test_a_tied_head_is_quantised_and_the_table_is_not():
    model = tiny()
    ready = prepared(model, quantize="int4")
    assert isinstance(ready.head, int4.Int4Linear)
    assert ready.token_embedding.weight.equal(model.token_embedding.weight)


def test_a_tied_head_of_fp32_is_multiplied_in_parts_and_stays_the_table():
    model = tiny(vocab_size=4096)
    ready = prepared(model)
    assert isinstance(ready.head, plain.SingleLinear)
    assert ready.head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    assert prepared(tiny()).head is None  # too small to gain


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int3"}, "quantize = 'int3' does not exist .*choose one of: none, int8, int4"),
        ({"quantize": "int8", "compile": True}, "compile.*int8"),
    ],
)
def test_what_cannot_be_is_one_line(options, said):
    with pytest.raises(ConfigError, match=said):
        prepared(tiny(), **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("samples", [1, 2])
def test_weights_that_are_not_finite_are_one_clear_error(form, bad, samples):
    model = tiny()
    with torch.no_grad():
        model.blocks[0].attention.projection.bias[0] = bad
    with pytest.raises(NonFiniteError, match="damaged"):
        list(continued(Generator(prepared(model, **FORMS[form])), [1, 2], SamplingSettings(), range(samples)))


@pytest.mark.parametrize("form", [name for name in FORMS if name != "none"])
def test_a_model_is_not_prepared_twice(form):
    with pytest.raises(ConfigError, match="prepared already"):
        prepared(prepared(tiny(), **FORMS[form]), quantize="int8")


def test_a_model_that_is_cut_into_parts_is_not_prepared_again():
    """Its layers would stay in fp32, and nobody would know."""
    with pytest.raises(ConfigError, match="prepared already"):
        prepared(prepared(tiny(vocab_size=4096)), quantize="int4")


def test_a_batch_does_not_change_what_a_sequence_is_rounded_to():
    """A sequence of large numbers beside one of small ones must not take its digits, in int8 neither."""
    linear = layer((64, 32))
    x = inputs(5, (64, 32))
    together = int8.as_int8(linear)(x)
    alone = torch.cat([int8.as_int8(linear)(row[None]) for row in x])
    size = x.abs().amax(dim=1, keepdim=True) * linear.weight.abs().sum(dim=1)
    assert ((together - alone).abs() <= size / 64).all()


def test_dtypes_are_kept():
    for name, options in FORMS.items():
        wanted = options.get("dtype", torch.float32)
        logits = Generator(prepared(tiny(), **options)).prefill(torch.tensor([PROMPT]))
        assert logits.dtype == wanted, name


def test_a_shape_of_its_own_is_not_lost():
    model = tiny()
    assert dataclasses.asdict(prepared(model, quantize="int8").config) == dataclasses.asdict(model.config)
