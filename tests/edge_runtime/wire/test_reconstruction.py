import pytest

from edge_runtime.wire.messages import SplitLearning
from edge_runtime.wire.reconstruction import NoisyReconstruction, Reconstruction, fault

MEASURED = Reconstruction(
    fp32=60.0,
    fp16=50.0,
    int8=30.0,
    noisy=(NoisyReconstruction(noise=0.5, psnr_db=25.0), NoisyReconstruction(noise=1.0, psnr_db=20.0)),
)
NARROW = Reconstruction(fp32=17.0, fp16=17.0, int8=16.0)


@pytest.mark.parametrize(
    ("precision", "noise", "psnr_db"),
    [
        ("fp32", 0.0, 60.0),
        ("fp16", 0.49, 50.0),
        ("int8", 0.0, 30.0),
        ("fp32", 0.5, 25.0),
        ("int8", 0.9, 25.0),
        ("fp32", 7.0, 20.0),
    ],
)
def test_psnr_of_a_noise_is_that_of_the_largest_measured_one_below_it(precision, noise, psnr_db):
    assert MEASURED.psnr_db(precision, noise) == psnr_db


@pytest.mark.parametrize(
    ("measured", "settings", "why"),
    [
        (None, SplitLearning(), "was not measured"),
        (MEASURED, SplitLearning(), "come back from their embeddings at 60 dB, and 20 dB are the most"),
        (MEASURED, SplitLearning(precision="int8", noise=0.5), "at 25 dB"),
        (MEASURED, SplitLearning(noise=1.0), None),
        (NARROW, SplitLearning(), None),
    ],
)
def test_fault_is_found_where_inputs_come_back_or_nobody_has_tried(measured, settings, why):
    found = fault(measured, settings)
    assert found is None if why is None else why in found
