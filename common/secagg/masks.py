"""Masks from ChaCha20 under a full 256-bit key, and vectors of w-bit integers packed for the wire."""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

MOST_BITS = 62
_NEGLIGIBLE = 2.0**-40


def keystream(key: bytes, size: int, bits: int) -> np.ndarray:
    """(size,) uint32 or uint64 words, uniform modulo 2^bits once reduced. key: 32 bytes, used for this alone."""
    words = word_type(bits)
    # a key is used once, so the nonce may be constant
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(size * words.itemsize)), words)


def word_type(bits: int) -> np.dtype:
    """The type that vectors modulo 2^bits are kept in. Raises ValueError outside 1 … 62."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"{bits} bits; allowed: 1 to {MOST_BITS}")
    return np.dtype("<u4" if bits <= 32 else "<u8")


def to_words(values: np.ndarray, bits: int) -> np.ndarray:
    """(d,) int64 → (d,) words modulo 2^bits. What does not fit wraps."""
    return reduced(values.astype("<u8").astype(word_type(bits)), bits)


def reduced(words: np.ndarray, bits: int) -> np.ndarray:
    return words & words.dtype.type((1 << bits) - 1)


def from_words(words: np.ndarray, bits: int) -> np.ndarray:
    """(d,) words → (d,) int64 in [−2^(bits−1), 2^(bits−1))."""
    values = reduced(words, bits).astype(np.int64)
    return np.where(values >= 1 << (bits - 1), values - (1 << bits), values)


def pack(words: np.ndarray, bits: int) -> bytes:
    """(d,) words below 2^bits → ⌈d·bits/8⌉ bytes, little end first."""
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    return np.packbits(np.unpackbits(raw, axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def unpack(content: bytes, size: int, bits: int) -> np.ndarray:
    """Inverse of `pack`. Raises ValueError for another number of bytes."""
    words = word_type(bits)
    if len(content) != packed_size(size, bits):
        raise ValueError(f"{len(content)} bytes received for {size} numbers of {bits} bits")
    flags = np.unpackbits(np.frombuffer(content, np.uint8), count=size * bits, bitorder="little").reshape(size, bits)
    whole = np.zeros((size, 8 * words.itemsize), dtype=np.uint8)
    whole[:, :bits] = flags
    return np.packbits(whole, axis=1, bitorder="little").view(words).ravel()


def packed_size(size: int, bits: int) -> int:
    return -(-size * bits // 8)


def bits_needed(units: float, sampling_rate: float, steps_per_unit: float, noise_std: float, size: int) -> int:
    """w such that a sum of `size` coordinates leaves [−2^(w−1), 2^(w−1)) with probability below 2⁻³⁹.

    units: those that may contribute, each drawn with probability `sampling_rate` and adding at most `steps_per_unit`
    grid steps to a coordinate. noise_std: of the summed noise in grid steps. The number drawn stays inside Bernstein's
    bound but for 2⁻⁴⁰, and the noise, sub-Gaussian as N_Z is, inside Hoeffding's. One bit to spare is added for a
    declaration that is up to half too low. A sum that wraps hurts accuracy, never privacy.
    """
    tail = -math.log(_NEGLIGIBLE)
    mean = units * sampling_rate
    drawn = min(units, mean + math.sqrt(2 * mean * (1 - sampling_rate) * tail) + 2 * tail / 3)
    each = tail + math.log(2 * size)
    noise = math.sqrt(2 * noise_std**2 * each)
    return math.ceil(math.log2(2 * (drawn * steps_per_unit + noise) + 1)) + 1
