import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from broker_server.server.certificates import Certificates
from broker_server.server.device_certificates import AGAIN_S, DAYS, DeviceCertificates
from broker_server.server.enrolments import CODE_S, Enrolments

DAY_S = 86_400.0
NOW_S = 1_796_000_000.0
BOOT, OTHER = b"b" * 16, b"o" * 16
KEY = Ed25519PrivateKey.generate().public_key()
RAW = KEY.public_bytes_raw()


class Desk:
    """A state folder, at a time that the test sets."""

    def __init__(self, state):
        self.state, self.now_s = state, NOW_S
        self.enrolments = Enrolments(state, self.clock)
        self.start()

    def clock(self):
        return self.now_s

    def start(self):
        self.certificates = DeviceCertificates(self.state, self.clock)

    def enrol(self, name="x"):
        generation = self.enrolments.enrol(name).generation
        return generation, self.certificates.first(name, generation)

    def revoked(self):
        """The serial numbers in the list of those revoked, which is signed by the CA."""
        found = x509.load_pem_x509_crl(self.certificates.revocations())
        ca = x509.load_pem_x509_certificate(Certificates(self.state).ca_pem().encode())
        assert found.is_signature_valid(ca.public_key())
        return {each.serial_number for each in found}


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def read(pem):
    return x509.load_pem_x509_certificate(pem.encode())


def test_first_certificate_has_its_key_beside_it_and_lives_as_long_as_the_code(desk):
    _, pem = desk.enrol()
    made, key = read(pem), load_pem_private_key(pem.encode(), None)
    assert made.public_key() == key.public_key()
    assert [each.value for each in made.subject] == ["x", "1"]
    assert made.not_valid_after_utc.timestamp() == pytest.approx(desk.now_s + CODE_S, abs=1)
    made.verify_directly_issued_by(read(Certificates(desk.state).ca_pem()))


def test_certificate_for_a_device_s_own_key_is_given_with_each_boot_and_anew_at_half_of_its_life(desk):
    generation, _ = desk.enrol()
    first = desk.certificates.after_proof("x", generation, BOOT, RAW)
    assert read(first).public_key() == KEY
    assert desk.certificates.after_proof("x", generation, BOOT, RAW) is None
    assert desk.certificates.after_proof("x", generation, OTHER, RAW) == first
    desk.start()
    assert desk.certificates.after_proof("x", generation, OTHER, RAW) == first, "the server has started anew"
    desk.now_s += DAYS * DAY_S / 2 + 1
    second = desk.certificates.after_proof("x", generation, OTHER, RAW)
    assert read(second).not_valid_after_utc > read(first).not_valid_after_utc
    assert desk.certificates.after_proof("x", generation, OTHER, RAW) is None


def test_certificates_of_a_device_that_is_revoked_or_enrolled_again_are_in_the_list(desk):
    generation, early = desk.enrol()
    own = desk.certificates.after_proof("x", generation, BOOT, RAW)
    desk.enrol("y")
    assert desk.revoked() == set()
    again, late = desk.enrol()
    assert desk.revoked() == {read(early).serial_number, read(own).serial_number}
    assert desk.certificates.after_proof("x", again, BOOT, RAW) != own
    desk.enrolments.revoke("x")
    assert len(desk.revoked()) == 4
    assert read(late).serial_number in desk.revoked()
    desk.now_s += CODE_S + 1
    desk.enrol()
    assert read(early).serial_number not in desk.revoked(), "what has expired needs no list"
    assert read(own).serial_number in desk.revoked()


def test_certificate_of_a_ca_that_is_gone_is_made_anew(desk):
    generation, _ = desk.enrol()
    before = desk.certificates.after_proof("x", generation, BOOT, RAW)
    (desk.state / "tls" / "ca.pem").unlink()
    after = desk.certificates.after_proof("x", generation, OTHER, RAW)
    assert read(after).issuer != read(before).issuer
    assert read(after).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value.startswith("MAS Edge CA")


def test_device_goes_on_without_a_certificate_where_none_can_be_made(desk, caplog):
    generation, _ = desk.enrol()
    key = desk.state / "tls" / "ca.key"
    whole = key.read_bytes()
    key.write_text("damaged")
    assert desk.certificates.after_proof("x", generation, BOOT, RAW) is None
    assert "x is given no certificate" in caplog.text
    key.write_bytes(whole)
    assert desk.certificates.after_proof("x", generation, BOOT, RAW) is None
    desk.now_s += AGAIN_S
    assert desk.certificates.after_proof("x", generation, BOOT, RAW) is not None
    assert desk.certificates.after_proof("stranger", 1, BOOT, RAW) is not None
    assert desk.enrolments.find("stranger") is None, "what is not enrolled leaves nothing"
