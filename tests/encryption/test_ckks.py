"""Keys and sizes as they are, and security as SEAL judges it."""

import sys

import numpy as np
import pytest

from quillgpt.encryption import ckks
from quillgpt.encryption.ckks import Client, Parameters, choose_parameters, context, levels_without_bootstrapping
from quillgpt.errors import ConfigError


@pytest.fixture(scope="module")
def client() -> Client:
    return Client(Parameters(ring=512, scale_bits=45, depth=3, security_bits=0))


@pytest.mark.parametrize("ring", ckks.RINGS)
def test_one_level_more_is_insecure_to_seal(ring: int) -> None:
    levels = levels_without_bootstrapping(ring)
    assert levels == {16384: 7, 32768: 19}[ring]
    context(Parameters(ring=ring, scale_bits=ckks.SCALE_BITS[0], depth=levels))
    with pytest.raises(ValueError, match=r"not compliant with .* security standard"):
        context(Parameters(ring=ring, scale_bits=ckks.SCALE_BITS[0], depth=levels + 1))


@pytest.mark.parametrize(
    ("depth", "slots", "ring", "scale_bits"),
    [(3, 64, 16384, 50), (7, 64, 16384, 45), (7, 16384, 32768, 50), (8, 64, 32768, 50), (19, 64, 32768, 40)],
)
def test_the_smallest_secure_ring_is_chosen(depth: int, slots: int, ring: int, scale_bits: int) -> None:
    parameters = choose_parameters(depth, slots)
    assert (parameters.ring, parameters.scale_bits, parameters.depth) == (ring, scale_bits, depth)
    assert parameters.security_bits == 128
    assert parameters.modulus_bits <= {16384: 438, 32768: 881}[ring]  # the standard's table


@pytest.mark.parametrize(("depth", "slots"), [(20, 64), (3, 32768)])
def test_what_fits_no_ring_is_refused(depth: int, slots: int) -> None:
    with pytest.raises(ValueError, match="no ring up to 32,768"):
        choose_parameters(depth, slots)


def test_sizes_are_those_of_the_arrays(client: Client) -> None:
    server = client.server([1, 2, -1])
    encrypted = client.encrypt(np.zeros(256))
    lower = server.rescaled(server.multiply_plain(encrypted, np.ones(256)))

    assert encrypted.bytes == 2 * 4 * 512 * 8  # polynomials, primes, coefficients, bytes
    assert lower.bytes == 2 * 3 * 512 * 8
    keys = [key for keys in (server._relinearisation, server._galois) for row in keys.data() for key in row]
    assert server.key_bytes == sum(key.data().dyn_array().size() * 8 for key in keys)


def test_the_server_computes_and_counts(client: Client) -> None:
    server = client.server([3])
    x, y = np.linspace(-1, 1, 256), np.linspace(2, 0, 256)
    a, b = client.encrypt(x), client.encrypt(y)

    square = server.multiply(a, a)
    result = server.multiply(square, b)
    np.testing.assert_allclose(client.decrypt(result), x * x * y, atol=1e-6)
    np.testing.assert_allclose(client.decrypt(server.rotate(a, 3)), np.roll(x, -3), atol=1e-6)
    np.testing.assert_allclose(client.decrypt(server.add_plain(server.subtract(a, b), y)), x, atol=1e-6)
    assert (server.level(a), server.level(square), server.level(result)) == (3, 2, 1)
    assert server.counts == ckks.Counts(products=2, rotations=1, rescalings=2)


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match=r"encryption needs tenseal, .*: pip install 'quillgpt\[he\]'"):
        levels_without_bootstrapping()
