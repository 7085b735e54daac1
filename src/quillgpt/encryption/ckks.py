"""CKKS by Microsoft SEAL, as TenSEAL brings it: who holds which key, and every multiplication counted.

A ciphertext holds N / 2 numbers (its slots) and a modulus, a product of primes. Multiplying doubles the scale in bits,
and rescaling brings it back by giving up one prime [Cheon 2017]: the primes given up are the multiplicative depth.
Without bootstrapping none can be won back, so their number bounds the circuit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from quillgpt.encryption.layout import Numbers
from quillgpt.errors import ConfigError

SECURITY_BITS = 128
OUTER_BITS = 60  # SEAL's largest prime: the last one left, which holds the result, and the one for switching keys
RINGS = (16384, 32768)
LARGEST_RING = RINGS[-1]  # of SEAL's table of what is 128-bit secure [Albrecht 2018]
SCALE_BITS = (40, 50)
"""At least, at most. The error is near 2^-scale times the noise, some 2^12 slots wide: 2^-38 to 2^-28 of a number."""
GENERATOR = 3  # SEAL's: a rotation by k slots is the Galois element 3^k mod 2N


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What client and server agree on; all of it is public."""

    ring: int
    """N, the degree of the polynomials"""
    scale_bits: int
    depth: int
    """rescalings that the modulus has primes for"""
    security_bits: int = SECURITY_BITS
    """128, or 0: SEAL then checks nothing (for tests of the arithmetic, in small rings)"""

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.ring // 2

    @property
    def prime_bits(self) -> tuple[int, ...]:
        """Sizes of the primes, the one for switching keys last."""
        return (OUTER_BITS, *[self.scale_bits] * self.depth, OUTER_BITS)

    @property
    def largest_number(self) -> float:
        """The last prime holds numbers to half its size, at the scale."""
        return 2.0 ** (OUTER_BITS - 1 - self.scale_bits)

    @property
    def modulus_bits(self) -> int:
        """Size of the whole modulus, which security bounds for each ring."""
        return sum(self.prime_bits)


@dataclass(kw_only=True)
class Counts:
    """The server's operations; those on single slots cost nothing besides."""

    plain_products: int = 0
    """ciphertext by plaintext"""
    products: int = 0
    """ciphertext by ciphertext, each with a relinearisation"""
    rotations: int = 0
    rescalings: int = 0


@dataclass(frozen=True)
class Encrypted:
    """A ciphertext; only a client can look into it."""

    content: Any = field(repr=False)

    @property
    def bytes(self) -> int:
        """Its size, uncompressed: two polynomials, 8 bytes for each coefficient and prime."""
        return self.content.dyn_array().size() * 8


def sealapi() -> ModuleType:
    """TenSEAL's door to SEAL itself; a `ConfigError` says how to get it."""
    try:
        from tenseal import sealapi
    except ImportError:
        raise ConfigError("encryption needs tenseal, which is missing: pip install 'quillgpt[he]'") from None
    return sealapi


def context(parameters: Parameters) -> Any:
    """SEAL's tables for the parameters; what SEAL calls insecure or impossible is a `ValueError`."""
    seal = sealapi()
    settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    settings.set_poly_modulus_degree(parameters.ring)
    settings.set_coeff_modulus(seal.CoeffModulus.Create(parameters.ring, list(parameters.prime_bits)))
    level = seal.SEC_LEVEL_TYPE.TC128 if parameters.security_bits else seal.SEC_LEVEL_TYPE.NONE
    made = seal.SEALContext(settings, True, level)
    if not made.parameters_set():
        raise ValueError(f"{parameters}: {made.parameters_error_message()}")
    return made


def choose_parameters(depth: int, slots: int) -> Parameters:
    """The smallest ring with that many slots whose secure modulus has the depth; `ValueError` where there is none."""
    for ring in RINGS:
        if ring // 2 >= slots and levels_without_bootstrapping(ring) >= depth:
            return Parameters(ring=ring, scale_bits=min(_free_bits(ring) // depth, SCALE_BITS[1]), depth=depth)
    raise ValueError(f"no ring up to {LARGEST_RING:,} has {slots:,} slots and depth {depth}")


def levels_without_bootstrapping(ring: int = LARGEST_RING) -> int:
    """How deep a circuit can be at the smallest scale: SEAL refuses a longer modulus as less than 128-bit secure."""
    return _free_bits(ring) // SCALE_BITS[0]


def _free_bits(ring: int) -> int:
    seal = sealapi()
    return seal.CoeffModulus.MaxBitCount(ring, seal.SEC_LEVEL_TYPE.TC128) - 2 * OUTER_BITS


class Client:
    """Holds the secret key: encrypts, decrypts, and makes the keys that a server needs to multiply and rotate."""

    def __init__(self, parameters: Parameters) -> None:
        seal = self._seal = sealapi()
        self.parameters = parameters
        self._context = context(parameters)
        self._generator = seal.KeyGenerator(self._context)
        self._encoder = seal.CKKSEncoder(self._context)
        self._encryptor = seal.Encryptor(self._context, self._generator.secret_key())
        self._decryptor = seal.Decryptor(self._context, self._generator.secret_key())

    def server(self, rotations: Iterable[int]) -> "Server":
        """A server with the public keys only, for rotations by these numbers of slots (to the left if positive)."""
        relinearisation, galois = self._seal.RelinKeys(), self._seal.GaloisKeys()
        self._generator.create_relin_keys(relinearisation)
        slots, twice = self.parameters.slots, 2 * self.parameters.ring
        elements = sorted({pow(GENERATOR, steps % slots, twice) for steps in rotations if steps % slots})
        self._generator.create_galois_keys(elements, galois)
        return Server(self.parameters, self._context, relinearisation, galois, len(elements))

    def encrypt(self, numbers: Numbers) -> Encrypted:
        """Encrypt one number a slot, at the full modulus."""
        plain, content = self._seal.Plaintext(), self._seal.Ciphertext()
        self._encoder.encode(numbers.ravel().tolist(), 2.0**self.parameters.scale_bits, plain)
        self._encryptor.encrypt_symmetric(plain, content)
        return Encrypted(content)

    def decrypt(self, encrypted: Encrypted) -> Numbers:
        """One number a slot. They are the client's own: their noise tells of the secret key [Li 2021]."""
        plain = self._seal.Plaintext()
        self._decryptor.decrypt(encrypted.content, plain)
        return np.array(self._encoder.decode_double(plain))


class Server:
    """Computes on ciphertexts with public keys; nothing in it can decrypt. Operands of a sum are at one level."""

    def __init__(
        self, parameters: Parameters, tables: Any, relinearisation: Any, galois: Any, rotation_keys: int
    ) -> None:
        seal = self._seal = sealapi()
        self.parameters = parameters
        self.counts = Counts()
        self._context, self._relinearisation, self._galois = tables, relinearisation, galois
        self._evaluator = seal.Evaluator(tables)
        self._encoder = seal.CKKSEncoder(tables)
        primes = parameters.depth + 2
        polynomials = (1 + rotation_keys) * 2 * (primes - 1)  # each key: two, for every prime but the last
        self.key_bytes = polynomials * primes * parameters.ring * 8

    def level(self, x: Encrypted) -> int:
        """Rescalings that are still possible, read from SEAL's chain of moduli."""
        return self._context.get_context_data(x.content.parms_id()).chain_index()

    def add(self, x: Encrypted, y: Encrypted) -> Encrypted:
        """x + y."""
        result = self._seal.Ciphertext()
        self._evaluator.add(x.content, y.content, result)
        return Encrypted(result)

    def subtract(self, x: Encrypted, y: Encrypted) -> Encrypted:
        """x - y."""
        result = self._seal.Ciphertext()
        self._evaluator.sub(x.content, y.content, result)
        return Encrypted(result)

    def add_plain(self, x: Encrypted, numbers: Numbers) -> Encrypted:
        """x + numbers that the server knows."""
        result = self._seal.Ciphertext()
        self._evaluator.add_plain(x.content, self._encoded(numbers, x, x.content.scale), result)
        return Encrypted(result)

    def multiply(self, x: Encrypted, y: Encrypted) -> Encrypted:
        """x * y, rescaled; the operand with more levels is brought down to the other first."""
        self.counts.products += 1
        result = self._seal.Ciphertext()
        lower = min(x, y, key=self.level)
        x, y = self.lowered(x, lower), self.lowered(y, lower)
        self._evaluator.multiply(x.content, y.content, result)
        self._evaluator.relinearize_inplace(result, self._relinearisation)
        return self.rescaled(Encrypted(result))

    def multiply_plain(self, x: Encrypted, numbers: Numbers) -> Encrypted:
        """x * numbers that the server knows, not yet rescaled, so that a sum of many is rescaled once."""
        self.counts.plain_products += 1
        result = self._seal.Ciphertext()
        self._evaluator.multiply_plain(x.content, self._encoded(numbers, x, 2.0**self.parameters.scale_bits), result)
        return Encrypted(result)

    def rescaled(self, x: Encrypted) -> Encrypted:
        """The same numbers, at their scale again and one level lower."""
        self.counts.rescalings += 1
        result = self._seal.Ciphertext()
        self._evaluator.rescale_to_next(x.content, result)
        return Encrypted(result)

    def lowered(self, x: Encrypted, like: Encrypted) -> Encrypted:
        """The same numbers at the level of another ciphertext: primes are dropped, nothing is rescaled."""
        result = self._seal.Ciphertext()
        self._evaluator.mod_switch_to(x.content, like.content.parms_id(), result)
        return Encrypted(result)

    def rotate(self, x: Encrypted, steps: int) -> Encrypted:
        """Slot i gets the number of slot i + steps, around the end."""
        if steps % self.parameters.slots == 0:
            return x
        self.counts.rotations += 1
        result = self._seal.Ciphertext()
        self._evaluator.rotate_vector(x.content, steps, self._galois, result)
        return Encrypted(result)

    def _encoded(self, numbers: Numbers, like: Encrypted, scale: float) -> Any:
        plain = self._seal.Plaintext()
        self._encoder.encode(numbers.ravel().tolist(), like.content.parms_id(), scale, plain)
        return plain
