import numpy as np

from edge_runtime.wire.embedding_noise import add_noise

KEY = b"k" * 32
E = np.random.default_rng(0).normal(0, 3, (4, 50, 40)).astype(np.float32)


def test_no_noise_leaves_the_array():
    assert add_noise(E, 0.0, KEY) is E


def test_noise_has_the_size_that_is_asked_for_relative_to_each_sample():
    louder = E * np.array([1, 10, 100, 1000], np.float32)[:, None, None]
    added = (add_noise(louder, 0.5, KEY) - louder).reshape(4, -1)
    rms = np.sqrt(np.square(louder).reshape(4, -1).mean(1))
    np.testing.assert_allclose(added.std(1) / rms, 0.5, rtol=0.05)
    np.testing.assert_allclose(added.mean(1) / rms, 0.0, atol=0.05)
    assert add_noise(louder, 0.5, KEY).dtype == np.float32


def test_embedding_has_the_same_noise_in_every_batch_and_nobody_else_s():
    whole = add_noise(E, 1.0, KEY)
    assert np.array_equal(add_noise(E[2:3], 1.0, KEY), whole[2:3])
    changed = E.copy()
    changed[0, 0, 0] = np.nextafter(changed[0, 0, 0], np.float32(9))
    noises = [whole - E, add_noise(changed, 1.0, KEY) - changed, add_noise(E, 1.0, b"other") - E]
    assert abs(np.corrcoef(noises[0][0].ravel(), noises[1][0].ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(noises[0].ravel(), noises[2].ravel())[0, 1]) < 0.1
    assert np.array_equal(add_noise(changed, 1.0, KEY)[1:], whole[1:])
