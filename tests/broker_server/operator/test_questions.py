from broker_server.operator import messages as shown
from broker_server.operator.questions import Questions


def answering(asked):
    return lambda request: (asked.append(request), shown.Done(says=type(request).__name__))[1]


def test_questions_wait_until_they_are_answered():
    woken, asked = [], []
    questions = Questions(lambda: woken.append(1))
    future = questions.ask(shown.AskStatus())
    assert woken == [1]
    assert not future.done()
    questions.answer_all(answering(asked))
    assert future.result().says == "AskStatus"
    questions.answer_all(answering(asked))
    assert len(asked) == 1


def test_questions_that_are_the_same_are_answered_once_and_acts_each():
    asked = []
    questions = Questions(lambda: None)
    futures = [questions.ask(shown.AskStatus()), questions.ask(shown.AskStatus()), questions.ask(shown.AskRounds())]
    futures += [questions.ask(shown.Act(act="pause")), questions.ask(shown.Act(act="pause"))]
    gone = questions.ask(shown.AskEvents())
    gone.cancel()
    questions.answer_all(answering(asked))
    assert [type(each).__name__ for each in asked] == ["AskStatus", "AskRounds", "Act", "Act"]
    assert all(each.done() for each in futures)


def test_questions_at_the_servers_end():
    questions = Questions(lambda: None)
    waiting = questions.ask(shown.AskStatus())
    questions.close()
    assert waiting.result() == questions.ask(shown.AskStatus()).result() == shown.NotDone(says="the server ends")
