import datetime as dt
import errno
import os
import socket
import ssl

import pytest

from edge_runtime.wire.connection_fault import Ends, connection_fault, cut_short

TODAY = dt.date(1970, 1, 1)


def untrusted(code, message="odd"):
    exc = ssl.SSLCertVerificationError(1, "certificate verify failed")
    exc.verify_code, exc.verify_message = code, message
    return exc


def tls(reason):
    exc = ssl.SSLError(1, "text")
    exc.reason = reason
    return exc


def system(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("exc", "sentence"),
    [
        (untrusted(9), "the server's certificate is not valid yet by this board's clock, 1970-01-01: set the clock"),
        (untrusted(10), "the server's certificate has expired by this board's clock, 1970-01-01: if that is the date"),
        (untrusted(20), "the server's certificate is of a CA that this board does not trust: enrol the board again"),
        (untrusted(18), "of a CA that this board does not trust"),
        (untrusted(62), "the server's certificate is not for server.lan: start it with --host-name server.lan"),
        (untrusted(64), "is not for server.lan"),
        (untrusted(99, "a\nnew fault"), "the server's certificate is not accepted: a new fault"),
        (tls("WRONG_VERSION_NUMBER"), "server.lan:8883 speaks no TLS: take the port at which the server does"),
        (tls("TLSV1_ALERT_PROTOCOL_VERSION"), "speaks TLS older than 1.2 alone"),
        (tls("SOMETHING_ELSE"), "the TLS handshake with server.lan:8883 failed: SOMETHING_ELSE"),
        (tls(None), "the TLS handshake with server.lan:8883 failed: "),
        (ssl.SSLEOFError(8, "EOF"), "server.lan:8883 closed the connection before it was made: the server's log"),
        (system(errno.ECONNRESET), "closed the connection before it was made"),
        (socket.gaierror(-2, "Name or service not known"), "the name server.lan cannot be looked up"),
        (system(errno.ECONNREFUSED), "nothing listens at server.lan:8883: is the server running"),
        (system(errno.ETIMEDOUT), "server.lan:8883 does not answer"),
        (system(errno.EHOSTUNREACH), "server.lan cannot be reached: this board has no network that leads there"),
        (system(errno.EMFILE), "server.lan:8883 cannot be reached: [Errno 24] Too many open files"),
        (None, "server.lan:8883 cannot be reached"),
    ],
)
def test_fault_is_one_sentence(exc, sentence):
    said = connection_fault(exc, "server.lan", 8883, TODAY, Ends())
    assert sentence in said
    assert said.isprintable()


def test_fault_names_the_ends_as_they_are():
    ends = Ends(peer="broker", here="machine", trusting="name them with --ca-file", makes_certificates=False)
    assert "the broker's certificate" in connection_fault(untrusted(9), "b", 1, TODAY, ends)
    assert "this machine's clock" in connection_fault(untrusted(9), "b", 1, TODAY, ends)
    assert connection_fault(untrusted(20), "b", 1, TODAY, ends).endswith("name them with --ca-file")
    assert "if that is the date, give the broker a new one" in connection_fault(untrusted(10), "b", 1, TODAY, ends)
    assert connection_fault(untrusted(62), "b", 1, TODAY, ends).endswith("is not for b: use a name that it has")


def test_connection_that_was_cut_short():
    assert "mqtts://" in cut_short("b", 1883, is_tls=False, ends=Ends())
    assert "the server's log says why" in cut_short("b", 8883, is_tls=True, ends=Ends())
