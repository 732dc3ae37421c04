"""Errors in content from outside.

    WireError
    ├── MessageInvalid        a control message is oversized, not JSON or not of its schema
    ├── TopicInvalid          a topic is not one of this protocol
    ├── BlobInvalid           a chunk or an assembled blob does not match its description
    ├── TensorsInvalid        a tensor file does not match the tensor table
    ├── BundleInvalid         a manifest or a file it names is missing, altered or not understood
    ├── BudgetTooSmall        no plan to train a bundle fits a memory budget
    ├── AugmentationImpossible samples of a bundle cannot be varied as is asked
    ├── SignatureInvalid      a manifest was not signed by the pinned server key
    └── TokenRefused          a token is missing, malformed, expired or meant for another bearer

Each message is one sentence that names the fault and its place.
"""

# coverage: every branch

from devices.cli.text import printable

MAX_REASON = 200


class WireError(ValueError):
    """Base of all errors in messages and files of a peer or an operator."""


class MessageInvalid(WireError):
    """A control message is oversized, not JSON or not of its schema."""


class TopicInvalid(WireError):
    """A topic does not belong to this protocol."""


class BlobInvalid(WireError):
    """A chunk or an assembled blob does not match its description."""


class TensorsInvalid(WireError):
    """A tensor file does not match the tensor table."""


class BundleInvalid(WireError):
    """A manifest, or a file that it names, is missing, altered or not understood."""


class BudgetTooSmall(WireError):
    """No plan to train a bundle fits a memory budget; the message has the least that would do."""

    def __init__(self, budget_bytes: int, needed_bytes: int, plan: object) -> None:
        super().__init__(
            f"{budget_bytes / 2**20:.0f} MiB of memory are too little for this bundle: "
            f"{-(-needed_bytes // 2**20)} MiB would do ({plan})"
        )
        self.budget_bytes = budget_bytes
        self.needed_bytes = needed_bytes
        self.plan = plan


class AugmentationImpossible(WireError):
    """Samples of a bundle cannot be varied as is asked: it is not known what becomes of labels."""


class SignatureInvalid(WireError):
    """A manifest was not signed by the key that this device trusts."""


class TokenRefused(WireError):
    """A token is missing, malformed, expired or meant for another bearer."""


def reason(text: object) -> str:
    """Return a decoder's complaint, cut and on one line: it may quote hostile text, and is logged."""
    return printable(text, MAX_REASON)
