"""A page over a server's answers, as a test sets them."""

import msgspec
from answering import Answering
from view_samples import STATUS

from broker_server.operator import messages as shown
from broker_server.operator.page import server as pages

AFFINITY = shown.AffinityView(
    tasks=("a", "b"), values=((0.5, -0.25), (None, 0.1)), errors=((0.1, None), (None, 0.1)), counts=((3, 3), (0, 3))
)
changed = msgspec.structs.replace


class Stage:
    """A server's answers, as a test sets them, and its page."""

    def __init__(self, folder, port, *, host="127.0.0.1", is_local=True, certificate=None):
        self.status = changed(STATUS, open=None, phases=(), split=None, losses={}, refused={}, phase_left_s=None)
        self.devices, self.rounds, self.events, self.affinity, self.acts = [], [], [], AFFINITY, []
        self._loop = Answering(self._answer)
        self.state, self.report = folder / "state", folder / "report"
        self.port = port
        self._stop = pages.serve(
            self._loop.questions,
            state=self.state,
            report=self.report,
            host=host,
            port=port,
            is_local=is_local,
            certificate=certificate,
        )

    def _answer(self, request):
        match request:
            case shown.AskStatus():
                return self.status
            case shown.AskFleet(after=after, most=most):
                rows = [each for each in self.devices if each.name > after][:most]
                return shown.FleetView(rows=tuple(rows), total=len(self.devices), doing={})
            case shown.AskRounds(after=after):
                return shown.Rounds(rows=tuple(r for r in self.rounds if r.number > after), total=len(self.rounds))
            case shown.AskEvents(after=number):
                return shown.Events(rows=tuple(e for e in self.events if e.number > number))
            case shown.AskAffinity():
                return self.affinity
            case _:
                self.acts.append((request.act, request.device))
                self.status = changed(self.status, is_paused=request.act == "pause")
                return shown.Done(says="done")

    def close(self):
        self._loop.close()
        self._stop()
