from broker_server.operator.page.login import GUESSES, GUESSES_S, SESSION_S, SESSIONS, Logins

TOKEN = "a" * 64


def test_login_by_the_token_lasts_for_its_time():
    logins = Logins(TOKEN, is_open=True)
    assert logins.may_read("", 0.0)
    assert not logins.may_act("", 0.0)
    secret = logins.begin(TOKEN, 0.0)
    assert len(secret) == 64
    assert logins.may_act(secret, SESSION_S - 1)
    assert not logins.may_act(secret, SESSION_S + 1)
    other = logins.begin(TOKEN, 0.0)
    assert other != secret
    logins.end(secret)
    assert not logins.may_act(secret, 1.0)
    assert logins.may_act(other, 1.0)


def test_page_for_others_needs_a_login_to_be_read():
    logins = Logins(TOKEN, is_open=False)
    assert not logins.may_read("", 0.0)
    assert logins.may_read(logins.begin(TOKEN, 0.0), 1.0)


def test_login_with_a_wrong_token_and_too_many_of_them():
    logins = Logins(TOKEN, is_open=False)
    for guess in ["", "b" * 64, "ä\ud800", *map(str, range(GUESSES - 3))]:
        assert logins.begin(guess, 1.0) is None
    assert logins.begin(TOKEN, 2.0) is None, "nobody guesses on"
    assert logins.begin(TOKEN, 2.0 + GUESSES_S) is not None


def test_sessions_are_bounded():
    logins = Logins(TOKEN, is_open=False)
    secrets = [logins.begin(TOKEN, 0.0) for _ in range(SESSIONS + 1)]
    assert not logins.may_act(secrets[0], 1.0)
    assert all(logins.may_act(secret, 1.0) for secret in secrets[1:])
