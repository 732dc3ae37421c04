"""A thread that answers questions, as a server's loop does."""

import threading

from broker_server.operator.questions import Questions


class Answering:
    """Questions, answered by `answer` until `close`."""

    def __init__(self, answer):
        self._answer = answer
        self._ends, self._woken = threading.Event(), threading.Event()
        self.questions = Questions(self._woken.set)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._ends.is_set():
            if self._woken.wait(0.05):
                self._woken.clear()
                self.questions.answer_all(self._answer)

    def close(self):
        self._ends.set()
        self._thread.join()
        self.questions.close()
