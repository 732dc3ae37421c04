r"""Text of others, made safe to show: printable, on one line, bounded.

What a device, a server or a file says may hold escape codes that drive a terminal, line breaks that forge a line of a
log, and marks that turn the order of letters round. `printable` is the one function that takes them out, and PRINTABLE
the pattern of what has none: the texts of messages have it in their schema, and everything that is logged or printed
about others goes through `printable`.
"""

# coverage: every branch

PRINTABLE = (
    r"^[^\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufeff\ufff9-\ufffb]*\Z"
)
MAX_SHOWN = 2000
"""The most characters of a line that is logged or printed."""


def printable(text: object, most: int) -> str:
    """Return a text on one line, at most `most` characters of it, with `?` for what cannot be printed.

    Line breaks and tabs become spaces.
    """
    shown = str(text)[:most]
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else " " if each in "\n\r\t" else "?" for each in shown)
