"""Gaussian noise on the embeddings that a device sends in split learning.

Its standard deviation is `noise` times the root mean square of the sample's embedding. It is drawn from a secret of the
device and the embedding itself: the same embedding has the same noise for ever, so that nobody averages it away by
asking again, and a device that was killed sends the same bits again. Who does not know the secret cannot subtract it.
"""

# coverage: every branch

import hmac

import numpy as np
from numpy.typing import NDArray

Batch = NDArray[np.float32]
KEY_BYTES = 32


def add_noise(e: Batch, noise: float, key: bytes) -> Batch:
    """Return embeddings (B, …) with noise; with 0 the same array."""
    if noise == 0:
        return e
    noisy = np.empty_like(e)
    for sample, changed in zip(e, noisy, strict=True):
        seed = hmac.digest(key, np.ascontiguousarray(sample, "<f4").tobytes(), "sha256")
        drawn = np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16], "little"))).standard_normal(
            sample.shape, np.float32
        )
        rms = np.sqrt(np.mean(np.square(sample, dtype=np.float64)))
        changed[...] = sample + np.float32(noise * rms) * drawn
    return noisy
