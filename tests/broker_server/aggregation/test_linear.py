"""Rules for linear models, with devices that answer as the runtime's do."""

import numpy as np
import pytest
from family import CLASSES, VALUES, X, by_task, golden

from broker_server.aggregation.linear import Answer, RoundPlace, linear_rule
from broker_server.aggregation.linear_settings import LinearSettings
from edge_runtime.linear.dual import ascend, local_gap, order_of, sum_of
from edge_runtime.linear.gradient import gradient, smoothness
from edge_runtime.linear.losses import LOSSES
from edge_runtime.linear.mixed_effect import MixedEffect
from edge_runtime.wire.linear import DualSteps, ForwardStep, GradientStep, LinearFacts, MixedEffectPart, StreamStep

AMTL = golden("amtl")
NAMES = ("a", "b", "c", "d")
TASK = dict(zip(NAMES, range(4), strict=True))


class Federation:
    """Rounds by a rule. State and weights are in float32 between two rounds, as in the journal and on the wire."""

    def __init__(self, strategy, loss, labels, steps, **settings):
        self.rule = linear_rule(strategy, LinearSettings(**settings))
        self.loss, self.labels = LOSSES[loss], labels
        self.rounds, self.index = self.rule.rounds(steps), 0
        self.known, self.state, self.since = [], {}, {}
        self.alpha = {name: {None: np.zeros(len(X[TASK[name]]))} for name in NAMES}
        self.shared = np.zeros(5)
        self.gaps, self.objectives, self.steps = [], [], []

    @property
    def weights(self):
        return (
            {}
            if not self.known
            else dict(zip(self.known, self.rule.weights(self.state).astype(np.float32), strict=True))
        )

    def round(self, names=NAMES, lost=()):
        place, own = RoundPlace(index=self.index, rounds=self.rounds), self.weights
        answers = {}
        for name in names:
            t = TASK[name]
            row = self.known.index(name) if name in self.known else None
            work = self.rule.work(self.state, name, row, self.since.get(name), place)
            sent = own.get(name, self.shared).astype(np.float64)
            x, y = X[t], self.labels[t]
            vector, facts = self.answer(name, x, y, sent, work, name in lost)
            answers[name] = Answer(
                vector=vector.astype(np.float32).astype(np.float64),
                sent=sent,
                loss=float(self.loss.value(x @ sent, y).mean()),
                examples=len(x),
                facts=facts,
            )
        devices = sorted({*self.known, *names})
        state = self.rule.extended(self.state, self.known, devices, 5)
        folded = self.rule.fold(state, devices, answers, place)
        self.state = {name: value.astype(np.float32).astype(np.float64) for name, value in folded.state.items()}
        shapes = self.rule.shapes(len(devices), 5)
        assert {name: value.shape for name, value in self.state.items()} == shapes
        self.known = devices if folded.shared is None else []
        self.shared = self.shared if folded.shared is None else folded.shared
        self.since |= dict.fromkeys(names, self.index)
        self.gaps.append(folded.gap)
        self.objectives.append(folded.objective)
        self.steps.append({name: each.facts.steps for name, each in answers.items()})
        self.index += 1

    def answer(self, name, x, y, sent, work, lost):
        match work:
            case DualSteps():
                alpha, passes, gap = np.zeros(len(x)), 0.0, None
                if not lost:
                    alpha, passes = self.alpha[name][work.since], work.passes
                    gap = local_gap(x, y, alpha, sent, self.loss)
                order = order_of(len(x), passes, (1, self.index))
                self.alpha[name] = {self.index: ascend(x, y, alpha, sent, self.loss, work.curvature, order)}
                return sum_of(x, self.alpha[name][self.index]), LinearFacts(steps=len(order), gap=gap)
            case ForwardStep():
                facts = LinearFacts(steps=len(x), smoothness=smoothness(x, self.loss))
                return sent - work.step * gradient(x, y, sent, self.loss), facts
            case StreamStep(first=first, count=count):
                seen = slice(first, first + count)
                return gradient(x[seen], y[seen], sent, self.loss), LinearFacts(steps=count)
            case GradientStep():
                return gradient(x, y, sent, self.loss), LinearFacts(steps=len(x), smoothness=smoothness(x, self.loss))
            case MixedEffectPart():
                model = MixedEffect(shared=work.shared, ridge=work.ridge, width=work.width)
                a, b = model.statistics(x, x, y)
                return np.concatenate([a[np.tril_indices(5)], b]), LinearFacts(steps=len(x))


def unrelated(**settings):
    return Federation("mocha", "hinge", CLASSES, 400, ridge=0.01, relation_rounds=0, **settings)


def test_mocha_ends_at_the_optimum_for_unrelated_devices_with_a_certificate():
    found = unrelated()
    for _ in range(found.rounds):
        found.round()
    assert found.steps[0] == found.steps[-1] == dict.fromkeys(NAMES, 0)
    assert found.gaps[0] == pytest.approx(4.0)
    assert min(found.gaps) >= 0
    assert found.gaps[-1] < 1e-6
    best = golden("mocha")["optimum_fixed_sigma"]
    assert found.objectives[-1] == pytest.approx(best["objective"], abs=1e-6)
    np.testing.assert_allclose([*found.weights.values()], by_task(best["W"]), atol=1e-4)


def test_mocha_holds_its_certificate_with_budgets_and_devices_that_come_late_go_or_forget():
    found = unrelated(passes=0.5, passes_of={"b": 2.0, "c": 0.0})
    found.round(("a", "b"))
    for _ in range(4):
        found.round(("a", "b", "c"))
    assert found.steps[1] == {"a": 6, "b": 30, "c": 0}
    assert found.steps[2] == {"a": 6, "b": 30, "c": 0}
    found.round(("a", "d"))
    assert found.gaps[-1] is found.objectives[-1] is None
    found.round()
    before = found.gaps[-1]
    found.round(lost=("b",))
    assert found.gaps[-1] is None
    assert found.steps[-1]["b"] == 0
    found.round()
    assert found.gaps[-1] > before
    for _ in range(150):
        found.round(NAMES if found.index % 3 else ("a", "b", "d"))
    gaps = [gap for gap in found.gaps if gap is not None]
    assert min(gaps) >= 0
    assert gaps[-1] < found.gaps[8]


def test_mocha_learns_relations_and_ends_lower_than_without_them():
    found = Federation("mocha", "hinge", CLASSES, 60, ridge=0.01, relation_rounds=6)
    for _ in range(found.rounds):
        found.round()
    assert min(found.gaps) >= 0
    best = golden("mocha")["joint"]["optimum_objective"]
    assert best < found.objectives[-1] < 1.02 * best
    sigma = found.state["sigma"]
    assert np.trace(sigma) == pytest.approx(1, abs=1e-6)
    assert np.abs(sigma - np.diag(np.diag(sigma))).max() > 0.1


def test_proximal_steps_follow_the_golden_rounds_and_measure_in_the_last():
    found = Federation("proximal_mtl", "half_squared", VALUES, 20, ridge=1.0)
    expected = golden("amtl")["synchronous_proximal_gradient"]
    for number in range(found.rounds):
        found.round()
        if (rounds := expected.get(str(number + 1))) is not None:
            np.testing.assert_allclose([*found.weights.values()], by_task(rounds["W"]), atol=1e-5)
    assert found.objectives[-1] == pytest.approx(expected["20"]["objective"], abs=1e-5)
    assert found.gaps == [None] * found.rounds


def test_proximal_steps_wait_for_nobody_who_is_away():
    found = Federation("proximal_mtl", "half_squared", VALUES, 400, ridge=1.0)
    for _ in range(400):
        found.round([name for name in NAMES if (found.index + TASK[name]) % 3])
    assert found.objectives[-1] is None
    found.round()
    assert found.objectives[-1] == pytest.approx(golden("amtl")["optimum"]["trace"]["objective"], abs=1e-4)


def test_amtl_ends_where_the_synchronous_steps_do_whoever_comes_when():
    found = Federation("amtl", "half_squared", VALUES, 6000, ridge=1.0, relaxation=0.3)
    order = np.random.default_rng(2).choice(NAMES, size=1500, p=[0.4, 0.3, 0.2, 0.1])
    found.round(("a", "b"))
    assert not found.state["v"].any()
    for name in order:
        found.round((str(name),))
    assert found.rounds == 6000
    best = golden("amtl")["optimum"]["trace"]["W"]
    np.testing.assert_allclose([*found.weights.values()], by_task(best), atol=1e-4)


def test_online_steps_follow_the_golden_rounds_and_stay_in_the_ball():
    known = golden("online")["online_conditional_gradient"]
    settings = {"radius": known["radius"], "online_rate": known["eta"]}
    found = Federation("online_primal_dual", "hinge", CLASSES, 8, **settings)
    for rounds in known["rounds"]:
        found.round()
        np.testing.assert_allclose([*found.weights.values()], by_task(rounds["W"]), atol=1e-6)
        norm = np.linalg.svd(found.state["w"], compute_uv=False).sum()
        assert norm == pytest.approx(rounds["nuclear_norm"], abs=1e-5)
    found.round(("a", "c"))
    assert not np.array_equal(found.state["g"][0], found.state["g"][1])


def test_mixed_effect_takes_one_round():
    known = golden("mixed_effect")
    found = Federation("mixed_effect", "half_squared", VALUES, 30, ridge=known["lam"], shared=known["alpha"], width=0.4)
    assert found.rounds == 1
    found.round()
    np.testing.assert_allclose(found.shared, known["linear_shared"]["shared_weight"], atol=1e-5)
    assert found.rule.weights({}) is None


def test_other_strategies_have_no_rule():
    assert linear_rule("mas", LinearSettings()) is None
    assert linear_rule("dmtrl", LinearSettings()) == linear_rule("mocha", LinearSettings())


class Delayed:
    """AMTL's golden course: who answers when, and how many answers before his column was read."""

    def __init__(self, rule, delays):
        self.rule, self.delays, self.history = rule, delays, []
        golden_state = {"delays": np.zeros((4, 5)), "smoothness": np.array([AMTL["L"]]), "v": np.zeros((4, 5))}
        self.state = golden_state
        self.history.append(golden_state)

    def answer(self, k, t):
        age = min(self.delays[k % len(self.delays)], k)
        read = self.history[k - age]
        p = self.rule.weights(read)[t]
        step = self.rule.work(read, NAMES[t], t, None, RoundPlace(index=0, rounds=9)).step
        z = p - step * gradient(X[t], VALUES[t], p, LOSSES["half_squared"])
        facts = LinearFacts(steps=len(X[t]), smoothness=smoothness(X[t], LOSSES["half_squared"]))
        given = {
            NAMES[t]: Answer(
                vector=z, sent=p, loss=0.0, examples=len(X[t]), facts=facts, age=self.delays[k % len(self.delays)]
            )
        }
        self.state = self.rule.fold(self.state, NAMES, given, RoundPlace(index=0, rounds=9)).state
        self.history.append(self.state)


@pytest.mark.parametrize(("name", "tau", "dynamic"), [("amtl", 2, False), ("amtl_dynamic", 8, True)])
def test_amtl_follows_the_golden_course(name, tau, dynamic):
    found = AMTL[name]
    rule = linear_rule("amtl", LinearSettings(ridge=1.0, dynamic_step=dynamic), tau)
    course = Delayed(rule, found["delays"])
    for k in range(40):
        course.answer(k, found["order"][k % 6])
        if (v := found["V"].get(str(k + 1))) is not None:
            np.testing.assert_allclose(course.state["v"], by_task(v), atol=1e-8)
