import json

from broker_server.server.audit import AUDIT, AuditLog


def lines(root):
    return [json.loads(line) for line in (root / AUDIT).read_text().splitlines()]


def test_audit_log_is_appended_for_its_owner_alone(tmp_path):
    AuditLog(tmp_path, clock=lambda: 0.0).add("enrolled", device="pi")
    AuditLog(tmp_path, clock=lambda: 60.0).add("refused", device="pi\x1b[2J", why="no\ntoken")
    assert lines(tmp_path) == [
        {"at": "1970-01-01T00:00:00Z", "what": "enrolled", "device": "pi"},
        {"at": "1970-01-01T00:01:00Z", "what": "refused", "device": "pi?[2J", "why": "no token"},
    ]
    assert (tmp_path / AUDIT).stat().st_mode & 0o777 == 0o600


def test_audit_log_leaves_out_what_floods_it_and_says_how_much(tmp_path):
    now = [0.0]
    log = AuditLog(tmp_path, clock=lambda: now[0])
    for _ in range(5000):
        log.add("refused", why="no token")
    log.add("revoked", device="pi")
    now[0] = 10.0
    log.add("refused", why="no token")
    found = lines(tmp_path)
    assert len(found) == 202
    assert found[200] == {"at": "1970-01-01T00:00:00Z", "what": "revoked", "device": "pi", "left_out_before": 4800}


def test_audit_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / AUDIT).mkdir()
    AuditLog(tmp_path).add("started")
    (tmp_path / "file").touch()
    AuditLog(tmp_path / "file").add("started")
