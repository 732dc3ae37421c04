from broker_server.rounds.losses import weighted_losses


def test_weighted_losses_leave_out_what_was_not_measured():
    reports = [({"a": 1.0, "b": 5.0}, {"a": 1, "b": 0}), ({"a": 4.0}, {"a": 2})]
    assert weighted_losses(reports) == {"a": 3.0}
