"""Why a client's TLS handshake with the broker failed, in one sentence, as far as that is known.

Alerts are those of RFC 8446, section 6.2, by the names that OpenSSL gives them.
"""

# coverage: every branch

import ssl

_NO_TLS = "it speaks no TLS: its URL begins with mqtt:// where mqtts:// is needed"
_OLD_TLS = "it speaks TLS older than 1.2 alone: bring it up to date"
_NAMES = "start the server with --host-name for the name that the device uses"
_EXPIRED = 10
_REASONS = {
    "ALERT_CERTIFICATE_EXPIRED": "by its clock this server's certificate has expired: is it right, and this machine's?",
    "ALERT_UNKNOWN_CA": "it does not know the CA of this server's certificate: enrol the device again",
    "ALERT_BAD_CERTIFICATE": f"this server's certificate is for other names than it uses ({_NAMES}), or not valid yet "
    "by its clock, which may be unset",
    "ALERT_CERTIFICATE_UNKNOWN": "it does not accept this server's certificate; its own log says why",
    "ALERT_PROTOCOL_VERSION": _OLD_TLS,
    "UNSUPPORTED_PROTOCOL": _OLD_TLS,
    "NO_SHARED_CIPHER": _OLD_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": "it speaks HTTP: this is an MQTT broker",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate of its own, and broker.client_certificates is set: "
    "enrol the device again",
    "CERTIFICATE_VERIFY_FAILED": "its own certificate is not one that this server's CA has given a device",
}


def handshake_fault(exc: BaseException) -> str | None:
    """Return the sentence for what a handshake raised; None for a client that went away or stayed silent."""
    if not isinstance(exc, ssl.SSLError) or exc.reason is None:
        return None
    if isinstance(exc, ssl.SSLCertVerificationError) and exc.verify_code == _EXPIRED:
        return "its own certificate has expired, by this machine's clock: enrol the device again"
    name = exc.reason.upper().replace(" ", "_")
    return next((sentence for words, sentence in _REASONS.items() if words in name), None)
