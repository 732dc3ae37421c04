"""Who may see the page and act by it.

Rules
- On this machine alone (a loopback address) reading needs no login; acts always do.
- Elsewhere everything needs one.
- A login is by the token in the state folder, and lasts for SESSION_S in this process alone. Guesses have an allowance.
"""

# coverage: every branch

import hmac
import secrets
from collections import deque

TOKEN_BYTES = 32
SESSION_S = 12 * 3600.0
SESSIONS = 64
GUESSES, GUESSES_S = 10, 60.0
"""So many wrong tokens in so much time; then none is looked at for a while."""


class Logins:
    """The logins of a page. `now_s` is any clock that goes forward."""

    def __init__(self, token: str, *, is_open: bool) -> None:
        """Take the token; with `is_open` reading needs no login."""
        self._token = token
        self._is_open = is_open
        self._sessions: dict[str, float] = {}
        self._wrong_s: deque[float] = deque(maxlen=GUESSES)

    def begin(self, token: str, now_s: float) -> str | None:
        """Return a new session's secret; None for a token that is wrong, or beyond the allowance of guesses."""
        if len(self._wrong_s) == GUESSES and now_s - self._wrong_s[0] < GUESSES_S:
            return None
        if not hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            self._wrong_s.append(now_s)
            return None
        while len(self._sessions) >= SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        secret = secrets.token_hex(TOKEN_BYTES)
        self._sessions[secret] = now_s + SESSION_S
        return secret

    def end(self, secret: str) -> None:
        """Forget a session."""
        self._sessions.pop(secret, None)

    def may_act(self, secret: str, now_s: float) -> bool:
        """Return whether a session with this secret goes on."""
        until_s = self._sessions.get(secret)
        return until_s is not None and now_s < until_s

    def may_read(self, secret: str, now_s: float) -> bool:
        """Return whether the page may be seen."""
        return self._is_open or self.may_act(secret, now_s)
