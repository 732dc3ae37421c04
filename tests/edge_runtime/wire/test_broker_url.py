import ssl

import pytest

from edge_runtime.wire.broker_url import LinkInvalid, is_loopback, show_certificate, tls_context


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.7", False), ("broker.lan", False)],
)
def test_this_machine_is_told_from_others(host, is_here):
    assert is_loopback(host) == is_here


def test_certificates_that_are_none_are_named(tmp_path):
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(LinkInvalid, match="ca.pem has no PEM certificates"):
        tls_context(tmp_path / "ca.pem", None)
    with pytest.raises(LinkInvalid, match="ca has no PEM certificates"):
        tls_context(None, "not a certificate")
    assert tls_context(None, None).minimum_version == ssl.TLSVersion.TLSv1_2


def test_own_certificate_that_is_none_is_named(tmp_path):
    (tmp_path / "client.pem").write_text("not a certificate")
    for name in ("client.pem", "none.pem"):
        with pytest.raises(LinkInvalid, match=f"{name} has no PEM certificate and its key"):
            show_certificate(tls_context(None, None), tmp_path / name)
