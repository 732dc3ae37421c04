"""Questions of other threads, which the server's loop answers between two events.

Whatever asks, and however slowly it takes the answer, the loop never waits for it. What is asked twice at the same
moment is answered once.
"""

# coverage: every branch

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue

from broker_server.operator.messages import Act, Answer, NotDone, Request


class Questions:
    """The questions that wait. `wake` is called, on the asking thread, for each."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: SimpleQueue[tuple[Request, Future[Answer]]] = SimpleQueue()
        self._is_closed = False

    def ask(self, request: Request) -> "Future[Answer]":
        """Return the answer to come. May be called from any thread."""
        future: Future[Answer] = Future()
        if self._is_closed:
            future.set_result(_ENDED)
        else:
            self._waiting.put((request, future))
            self._wake()
        return future

    def answer_all(self, answer: Callable[[Request], Answer]) -> None:
        """Answer what has been asked. On the thread that owns what is asked about."""
        answered: dict[Request, Answer] = {}
        with suppress(Empty):
            while True:
                request, future = self._waiting.get_nowait()
                if not future.set_running_or_notify_cancel():  # who asked has gone
                    continue
                if isinstance(request, Act):
                    future.set_result(answer(request))
                    continue
                if request not in answered:
                    answered[request] = answer(request)
                future.set_result(answered[request])

    def close(self) -> None:
        """Answer nothing more."""
        self._is_closed = True
        self.answer_all(lambda _: _ENDED)


_ENDED = NotDone(says="the server ends")
