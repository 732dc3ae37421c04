"""What comes back of a device's inputs from the embeddings that split learning sends, as the exporter has measured it.

The exporter attacks the stem that it compiles (export.reconstruction) and writes into the manifest how near it came, as
a peak signal-to-noise ratio: 10 · log10(range² / mean squared error). The figure is what one attack reached on the
initial stem. Another may reach more, and training changes the stem.
"""

# coverage: every branch

from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.messages import Precision, SplitLearning

MAX_PSNR_DB = 100.0
"""What an exact reconstruction counts as."""
ALLOWED_PSNR_DB = 20.0
"""The most that needs no permission: an error of a tenth of the range. docs/security.md has the measurements."""
NOISES = (0.5, 1.0, 2.0)
"""The noises for which the exporter measures; a noise between two of them counts as the smaller one."""

Decibels = Annotated[float, Meta(ge=0, le=MAX_PSNR_DB)]


class NoisyReconstruction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes back of embeddings with noise, sent in fp32."""

    noise: Annotated[float, Meta(gt=0, le=100)]
    """As SplitLearning has it."""
    psnr_db: Decibels


class Reconstruction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The PSNR in dB of inputs made from their embeddings, by the precision in which these are sent, and by noise."""

    fp32: Decibels
    fp16: Decibels
    int8: Decibels
    noisy: Annotated[tuple[NoisyReconstruction, ...], Meta(max_length=16)] = ()

    def psnr_db(self, precision: Precision, noise: float) -> float:
        """Return what comes back at a precision and a noise."""
        exact = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision]
        return min([exact, *(each.psnr_db for each in self.noisy if each.noise <= noise)])


def fault(measured: Reconstruction | None, settings: SplitLearning) -> str | None:
    """Return why split learning needs a permission by name for a bundle; None if it needs none."""
    if measured is None:
        return (
            "how much of an input comes back from its embedding was not measured (compile the bundle again; inputs of "
            "integers cannot be measured)"
        )
    psnr_db = measured.psnr_db(settings.precision, settings.noise)
    if psnr_db <= ALLOWED_PSNR_DB:
        return None
    return (
        f"inputs come back from their embeddings at {psnr_db:.0f} dB, and {ALLOWED_PSNR_DB:.0f} dB are the most "
        "(a stem that keeps less, or split_learning.noise, lowers it)"
    )
