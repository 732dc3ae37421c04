"""Why a connection to a broker could not be made, in one sentence: what is wrong, and what to do.

Codes of failed verification are OpenSSL's (X509_V_ERR_…, <openssl/x509_vfy.h>), which Python passes on as they are.
"""

# coverage: every branch

import datetime as dt
import errno
import socket
import ssl
from dataclasses import dataclass

from edge_runtime.wire.errors import reason

_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
_OLD_TLS = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"}
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What the two ends of a connection are called."""

    peer: str = "server"
    here: str = "board"
    trusting: str = "enrol the board again, which gives it the server's CA, or name the right certificates as ca_file"
    """What to do about a certificate that is not trusted."""
    makes_certificates: bool = True
    """Whether the peer makes its own, as the server does, and a broker of others does not."""


OF_A_SERVER = Ends()


def connection_fault(  # noqa: PLR0911 - a sentence for each kind
    exc: BaseException | None, host: str, port: int, today: dt.date, ends: Ends = OF_A_SERVER
) -> str:
    """Return the sentence for an exception of a connection to `host`; `today` is the date by the clock here."""
    where = f"{host}:{port}"
    match exc:
        case ssl.SSLCertVerificationError():
            return _untrusted(exc, host, today, ends)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ConnectionResetError() | BrokenPipeError():
            return f"{where} closed the connection before it was made: the {ends.peer}'s log says why"
        case ssl.SSLError(reason=str(why)) if why in _NO_TLS:
            return f"{where} speaks no TLS: take the port at which the {ends.peer} does"
        case ssl.SSLError(reason=str(why)) if why in _OLD_TLS:
            return f"{where} speaks TLS older than 1.2 alone: bring the {ends.peer} up to date"
        case ssl.SSLError():
            return f"the TLS handshake with {where} failed: {reason(exc.reason or exc)}"
        case socket.gaierror():
            return f"the name {host} cannot be looked up: is this {ends.here}'s network up, and the name right?"
        case ConnectionRefusedError():
            return f"nothing listens at {where}: is the {ends.peer} running, and the port right?"
        case TimeoutError():
            return f"{where} does not answer: is the {ends.peer} on, and no firewall between?"
        case OSError(errno=number) if number in _NO_WAY:
            return f"{host} cannot be reached: this {ends.here} has no network that leads there"
        case _:
            return f"{where} cannot be reached" + ("" if exc is None else f": {reason(exc)}")


def cut_short(host: str, port: int, *, is_tls: bool, ends: Ends = OF_A_SERVER) -> str:
    """Return the sentence for a connection that was closed before the broker had answered."""
    where = f"{host}:{port} closed the connection before it answered"
    if is_tls:
        return f"{where}: the {ends.peer}'s log says why"
    return f"{where}: it may speak TLS alone, for which the URL begins with mqtts://"


def _untrusted(exc: ssl.SSLCertVerificationError, host: str, today: dt.date, ends: Ends) -> str:
    whose, clock = f"the {ends.peer}'s certificate", f"by this {ends.here}'s clock, {today.isoformat()}"
    match exc.verify_code:
        case code if code == _NOT_YET_VALID:
            return f"{whose} is not valid yet {clock}: set the clock"
        case code if code == _EXPIRED:
            anew = f"start the {ends.peer} again, which makes a new one"
            renewal = anew if ends.makes_certificates else f"give the {ends.peer} a new one"
            return f"{whose} has expired {clock}: if that is the date, {renewal}; else set the clock"
        case code if code in _UNKNOWN_CA:
            return f"{whose} is of a CA that this {ends.here} does not trust: {ends.trusting}"
        case code if code in _OTHER_NAME:
            adding = f"start it with --host-name {host}, or " if ends.makes_certificates else ""
            return f"{whose} is not for {host}: {adding}use a name that it has"
        case _:
            return f"{whose} is not accepted: {reason(exc.verify_message)}"
