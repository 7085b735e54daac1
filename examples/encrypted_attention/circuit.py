"""One attention head on ciphertexts: CKKS by Microsoft SEAL through TenSEAL, and the circuit of the head.

A ciphertext of a ring of degree R holds R / 2 numbers (slots) and a modulus, a product of primes. Each multiplication
uses up a prime, a level [Cheon 2017]; without bootstrapping none comes back, so their number bounds the circuit.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi as seal

from quillgpt.config import ModelConfig
from quillgpt.model.attention.gaussian_poly import PREFIX, degree_of

Numbers = NDArray[np.float64]
Ciphertext = Any  # TenSEAL has no type stubs
RING = 32768  # the largest in the standard's table of 128-bit security [Albrecht 2018]
SECURITY = seal.SEC_LEVEL_TYPE.TC128
OUTER_BITS = 60  # SEAL's largest prime: the first, which holds the result, and the one for switching keys
SCALE_BITS = (40, 50)  # at least, at most
MAX_DEPTH = (seal.CoeffModulus.MaxBitCount(RING, SECURITY) - 2 * OUTER_BITS) // SCALE_BITS[0]


class Kernel(NamedTuple):
    """The polynomial weight of a pair: (1 + scale_i |q_i - k_j|^2)^power, or (scale_i q_i k_j)^power."""

    is_distance: bool
    scale: Numbers  # (T,), of the query's position
    power: int

    @property
    def depth(self) -> int:
        """Levels of `attend`: the pair's product, scale and mask, ceil(log2 power), the product with the value."""
        return 3 + (self.power - 1).bit_length()


def polynomial_kernel(config: ModelConfig, positions: int) -> Kernel | None:
    """The kernel of the model's attention; None if it is not a polynomial."""
    root = math.sqrt(config.n_embd // config.n_head)
    if config.attention.startswith(PREFIX):
        power = degree_of(config.attention)
        return Kernel(True, np.full(positions, -1 / (2 * root * power)), power)
    if config.attention == "pointwise-identity":
        length = np.arange(1, positions + 1.0)
        return Kernel(False, 1 / (root * length**config.pointwise_length_power), 1)
    return None


class CKKS:
    """Client and server in one object: `encrypt` and `decrypt` use the secret key, all other methods public keys."""

    def __init__(self, depth: int, rotations: Iterable[int], ring: int = RING, security: Any = SECURITY) -> None:
        scale_bits = min(MAX_DEPTH * SCALE_BITS[0] // depth, SCALE_BITS[1])
        self.scale, self.largest_number = 2.0**scale_bits, 2.0 ** (OUTER_BITS - 1 - scale_bits)
        settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        settings.set_poly_modulus_degree(ring)
        settings.set_coeff_modulus(seal.CoeffModulus.Create(ring, [OUTER_BITS, *[scale_bits] * depth, OUTER_BITS]))
        self._context = context = seal.SEALContext(settings, True, security)
        generator = seal.KeyGenerator(context)  # a ValueError if the modulus is too long to be secure
        self._relinearization_keys, self._galois_keys = seal.RelinKeys(), seal.GaloisKeys()
        generator.create_relin_keys(self._relinearization_keys)
        elements = {pow(3, steps % (ring // 2), 2 * ring) for steps in rotations}  # SEAL's generator of rotations
        generator.create_galois_keys(sorted(elements), self._galois_keys)
        self._encoder, self._evaluator = seal.CKKSEncoder(context), seal.Evaluator(context)
        self._encryptor = seal.Encryptor(context, generator.secret_key())
        self._decryptor = seal.Decryptor(context, generator.secret_key())

    def encrypt(self, slots: Numbers) -> Ciphertext:
        plain = _result(self._encoder.encode, slots.tolist(), self.scale, into=seal.Plaintext)
        return _result(self._encryptor.encrypt_symmetric, plain)

    def decrypt(self, x: Ciphertext) -> Numbers:
        """The numbers, which the server must not see: their noise reveals the secret key [Li 2021]."""
        return np.array(self._encoder.decode_double(_result(self._decryptor.decrypt, x, into=seal.Plaintext)))

    def level(self, x: Ciphertext) -> int:
        """Rescalings that remain, read from SEAL's chain of moduli."""
        return self._context.get_context_data(x.parms_id()).chain_index()

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return _result(self._evaluator.add, x, y)

    def subtract(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return _result(self._evaluator.sub, x, y)

    def multiply(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        """x * y, one level below y, which has at most the levels of x."""
        product = _result(self._evaluator.multiply, _result(self._evaluator.mod_switch_to, x, y.parms_id()), y)
        product = _result(self._evaluator.relinearize, product, self._relinearization_keys)
        return _result(self._evaluator.rescale_to_next, product)

    def scale_and_add(self, x: Ciphertext, factor: Numbers, summand: Numbers) -> Ciphertext:
        """x * factor + summand, both known to the server; one level below x."""
        plain = _result(self._encoder.encode, factor.tolist(), x.parms_id(), self.scale, into=seal.Plaintext)
        product = _result(self._evaluator.rescale_to_next, _result(self._evaluator.multiply_plain, x, plain))
        numbers = summand.tolist(), product.parms_id(), product.scale
        return _result(self._evaluator.add_plain, product, _result(self._encoder.encode, *numbers, into=seal.Plaintext))

    def rotate(self, x: Ciphertext, steps: int) -> Ciphertext:
        """Slot i gets the number of slot i + steps, modulo the slots."""
        return _result(self._evaluator.rotate_vector, x, steps, self._galois_keys)


def _result(operation: Callable[..., None], *operands: Any, into: Any = seal.Ciphertext) -> Any:
    result = into()
    operation(*operands, result)
    return result


class Layout:
    """The place of a matrix (T, D) in the slots: a row is a channel, a lane of the rows is a position.

    lanes = 4, T = 3        slot   0   1   2   3 | 4   5   6   7 | 8 ...
                                  x00 x10 x20  0 |x01 x11 x21  0 |x02 ...      x_td: position t, channel d

    Channels repeat every `period` rows, a power of two, so that a sum over rotations by rows arrives in every row.
    """

    def __init__(self, positions: int, head_size: int, slots: int) -> None:
        self.positions, self.head_size, self.slots = positions, head_size, slots
        self.lanes, self.period = (1 << (count - 1).bit_length() for count in (positions, head_size))
        self.rotations = [self.lanes << k for k in range(self.period.bit_length() - 1)]

    def packed(self, x: Numbers) -> Numbers:
        one = np.pad(x.T, [(0, self.period - self.head_size), (0, self.lanes - self.positions)])
        return np.resize(one, self.slots)

    def unpacked(self, slots: Numbers) -> Numbers:
        return slots.reshape(-1, self.lanes)[: self.head_size, : self.positions].T

    def causal(self, back: int, factor: Numbers) -> Numbers:
        """The factor (T,) of each position that has another one `back` positions before it, and 0 elsewhere."""
        return np.resize(np.pad(factor[back:], (back, self.lanes - self.positions)), self.slots)


def attend(ckks: CKKS, layout: Layout, kernel: Kernel, query: Any, key: Any, value: Any) -> Ciphertext:
    """The sum over j <= i of weight(q_i, k_j) v_j, one distance i - j at a time: keys and values move one lane on."""
    total, constant = None, np.full(layout.positions, float(kernel.is_distance))
    for back in range(layout.positions):
        if back:
            key, value = ckks.rotate(key, -1), ckks.rotate(value, -1)
        difference = ckks.subtract(query, key)
        pairs = ckks.multiply(difference, difference) if kernel.is_distance else ckks.multiply(query, key)
        for steps in layout.rotations:  # the sum over channels, by doubling
            pairs = ckks.add(pairs, ckks.rotate(pairs, steps))
        pairs = ckks.scale_and_add(pairs, layout.causal(back, kernel.scale), layout.causal(back, constant))
        term = ckks.multiply(value, _power(ckks, pairs, kernel.power))
        total = term if total is None else ckks.add(total, term)
    return total


def _power(ckks: CKKS, x: Ciphertext, exponent: int) -> Ciphertext:
    """x^exponent by squaring, in ceil(log2 exponent) levels."""
    result = None
    while exponent:
        if exponent % 2:
            result = x if result is None else ckks.multiply(result, x)
        exponent //= 2
        x = ckks.multiply(x, x) if exponent else x
    return result
