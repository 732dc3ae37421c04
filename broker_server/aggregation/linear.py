"""Rules for linear models: from what devices answer in a round to weights for each of them, or one vector for all.

- mocha, dmtrl    weights from the devices' dual variables, by a covariance of the devices that is learned meanwhile
- proximal_mtl    a proximal gradient step on the weights of all devices at once
- amtl            the same, one device at a time: nobody waits for anybody
- online_primal_dual    weights in a ball of low rank, while samples come as a stream
- mixed_effect    the part that all share, from statistics of each, in one exchange

Devices are rows, in the order of their names. State is a handful of arrays, in float32 between two rounds, so that a
server that starts again goes on from the same bits.
"""

# coverage: every branch

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker_server.aggregation import covariance
from broker_server.aggregation.linear_settings import LinearSettings
from broker_server.aggregation.mixed_effect import shared_part, unpacked
from broker_server.aggregation.proximal_maps import leading_pair, proximal, value
from edge_runtime.wire.linear import (
    DualSteps,
    ForwardStep,
    GradientStep,
    LinearFacts,
    LinearWork,
    MixedEffectPart,
    StreamStep,
)

Array = NDArray[np.float64]
State = dict[str, Array]
DELAYS = 5
"""The last delays of a device that are remembered."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A device's answer: its vector, the weights (d,) that it was sent, and what it measured with them."""

    vector: Array
    sent: Array
    loss: float
    examples: int
    facts: LinearFacts
    age: int = 0
    """Rounds that have closed since it was asked."""


@dataclass(frozen=True, kw_only=True)
class RoundPlace:
    """Where a round stands: its number in the phase, from 0, of `rounds`."""

    index: int
    rounds: int

    @property
    def measures(self) -> bool:
        """Return whether it is the last one, which takes no step: it measures what the others have made."""
        return self.index == self.rounds - 1


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What a round has made: the state after it, and the problem's value and duality gap before it.

    The latter two are of the weights that devices were sent; None where not all devices have measured them.
    """

    state: State = field(default_factory=dict)
    shared: Array | None = None
    """Weights (d,) for all devices, where none has its own."""
    objective: float | None = None
    gap: float | None = None


class LinearRule(Protocol):
    """A seam: what is kept, sent and asked for. T devices, d features."""

    def rounds(self, steps: int) -> int:
        """Return the rounds that so many steps take."""
        ...

    def shapes(self, devices: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the state's arrays."""
        ...

    def extended(self, state: State, known: Sequence[str], devices: Sequence[str], size: int) -> State:
        """Return the state of more devices; `known` are those that it has, and the state is empty if there are none."""
        ...

    def weights(self, state: State) -> Array | None:
        """Return the devices' weights (T, d); None where they have one vector for all."""
        ...

    def work(self, state: State, device: str, row: int | None, since: int | None, place: RoundPlace) -> LinearWork:
        """Return what a device is asked for: it is a row of the state, or new; `since` is when it last answered."""
        ...

    def fold(self, state: State, devices: Sequence[str], answers: Mapping[str, Answer], place: RoundPlace) -> Folded:
        """Return what the answers make of the state of these devices, which has all that answered."""
        ...


def _moved(rows: Array, known: Sequence[str], devices: Sequence[str], size: int) -> Array:
    """Return rows for more devices: 0 for those that are new."""
    grown = np.zeros((len(devices), size))
    if known:
        grown[[devices.index(name) for name in known]] = rows
    return grown


@dataclass(frozen=True, kw_only=True)
class Relationship:
    """MOCHA and DMTRL: b_t = Xᵀα/n of each device, W = ΣB/λ, and Σ = (WᵀW)^½ / tr after some rounds.

    In its first round a phase learns who is there: devices measure alone, as does one that is new later. W is made anew
    of B whenever Σ changes, so that the duality gap stays a certificate.

    Source: Liu, Pan, Ho, KDD 2017, algorithm 1; Smith et al., NIPS 2017, algorithm 1.
    """

    settings: LinearSettings

    def rounds(self, steps: int) -> int:
        """Return the rounds of so many steps, with the first and the last, which measure."""
        return steps + 2

    def shapes(self, devices: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of B and Σ."""
        return {"b": (devices, size), "sigma": (devices, devices)}

    def extended(self, state: State, known: Sequence[str], devices: Sequence[str], size: int) -> State:
        """Return B and Σ of more devices, which are unrelated to the others."""
        sigma = covariance.extended(state["sigma"], known, devices) if known else covariance.unrelated(len(devices))
        return {"b": _moved(state.get("b", np.zeros(0)), known, devices, size), "sigma": sigma}

    def weights(self, state: State) -> Array:
        """Return W = ΣB/λ."""
        return covariance.weights(state["b"], state["sigma"], self.settings.ridge)

    def work(self, state: State, device: str, row: int | None, since: int | None, place: RoundPlace) -> LinearWork:
        """Return a device's budget and curvature."""
        if row is None:
            return DualSteps(curvature=1.0, passes=0.0)
        curvature = covariance.separability(state["sigma"]) * float(state["sigma"][row, row]) / self.settings.ridge
        budget = 0.0 if place.measures else self.settings.passes_of.get(device, self.settings.passes)
        return DualSteps(curvature=curvature, passes=budget, since=since)

    def fold(self, state: State, devices: Sequence[str], answers: Mapping[str, Answer], place: RoundPlace) -> Folded:
        """Return B with the answers, and Σ of the weights where it is time."""
        ridge, b, sigma = self.settings.ridge, state["b"].copy(), state["sigma"]
        objective, gap = None, None
        gaps = [answers[name].facts.gap for name in devices if name in answers]
        measured = [each for each in gaps if each is not None]
        if len(measured) == len(devices):
            sent = np.array([answers[name].sent for name in devices])
            objective = sum(each.loss for each in answers.values()) + covariance.penalty(sent, sigma, ridge)
            gap = sum(measured) + covariance.misfit(sent, b, sigma, ridge)
        for row, name in enumerate(devices):
            if name in answers:
                b[row] = answers[name].vector
        every = self.settings.relation_rounds
        # The last steps are with the Σ that is then in use, so that they end at its optimum.
        if every and place.index and place.index % every == 0 and place.index < place.rounds - 2:
            sigma = covariance.covariance(covariance.weights(b, sigma, ridge))
        return Folded(state={"b": b, "sigma": sigma}, objective=objective, gap=gap)


@dataclass(frozen=True, kw_only=True)
class ProximalStep:
    """Proximal multi-task learning: W = prox(V), v_t = w_t - ∇ℓ_t(w_t)/L, L the largest constant of any device.

    A device that does not answer keeps its v_t.

    Source: Baytas et al., ICDM 2016, section 3 (the synchronous form); Beck, Teboulle, SIAM J. Imaging
    Sci. 2009 (ISTA).
    """

    settings: LinearSettings

    def rounds(self, steps: int) -> int:
        """Return the rounds of so many steps, with the last, which measures."""
        return steps + 1

    def shapes(self, devices: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of V and L."""
        return {"smoothness": (1,), "v": (devices, size)}

    def extended(self, state: State, known: Sequence[str], devices: Sequence[str], size: int) -> State:
        """Return V of more devices, which begin at 0."""
        return {
            "smoothness": state.get("smoothness", np.zeros(1)),
            "v": _moved(state.get("v", np.zeros(0)), known, devices, size),
        }

    def weights(self, state: State) -> Array:
        """Return W = prox(V)."""
        smoothness = float(state["smoothness"][0])
        tau = self.settings.ridge / smoothness if smoothness else 0.0
        return proximal(self.settings.regulariser, state["v"], tau)

    def work(self, _state: State, _device: str, _row: int | None, _since: int | None, _place: RoundPlace) -> LinearWork:
        """Return that a gradient is asked for."""
        return GradientStep()

    def fold(self, state: State, devices: Sequence[str], answers: Mapping[str, Answer], place: RoundPlace) -> Folded:
        """Return V after a step on each device that has answered."""
        objective = None
        if len(answers) == len(devices):
            sent = np.array([answers[name].sent for name in devices])
            losses = sum(each.loss * each.examples for each in answers.values())
            objective = losses + self.settings.ridge * value(self.settings.regulariser, sent)
        if place.measures:
            return Folded(state=state, objective=objective)
        known = [each.facts.smoothness for each in answers.values() if each.facts.smoothness is not None]
        smoothness = max(float(state["smoothness"][0]), *known, 1e-12)
        v = state["v"].copy()
        for row, name in enumerate(devices):
            if name in answers:
                v[row] = answers[name].sent - answers[name].vector / smoothness
        return Folded(state={"smoothness": np.array([smoothness]), "v": v}, objective=objective)


@dataclass(frozen=True, kw_only=True)
class AsynchronousStep(ProximalStep):
    """AMTL: a device gets its column p of prox(V) and answers z = p - ∇ℓ(p)/L; v_t moves towards z, by a share.

    The share is c/(2τ/√T + 1) for delays of at most τ = `most_delays` rounds; with `dynamic_step` times ln of the mean
    of the device's last five delays, of 10 at least. V is kept, never W: a column moves when its device answers alone.

    Source: Baytas et al., ICDM 2016, algorithm 1 and section 4.
    """

    most_delays: int

    def rounds(self, steps: int) -> int:
        """Return the rounds of so many exchanges, each of which is one."""
        return steps

    def shapes(self, devices: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the last delays, L and V."""
        return {"delays": (devices, DELAYS), **super().shapes(devices, size)}

    def extended(self, state: State, known: Sequence[str], devices: Sequence[str], size: int) -> State:
        """Return the state of more devices; the delays of those that are new are not known: -1."""
        delays = _moved(state.get("delays", np.zeros(0)) + 1, known, devices, DELAYS) - 1
        return {"delays": delays, **super().extended(state, known, devices, size)}

    def work(self, state: State, _device: str, row: int | None, _since: int | None, _place: RoundPlace) -> LinearWork:
        """Return the length of a step: 1/L."""
        return ForwardStep(step=0.0 if row is None else 1 / float(state["smoothness"][0]))

    def fold(self, state: State, devices: Sequence[str], answers: Mapping[str, Answer], _place: RoundPlace) -> Folded:
        """Return V after the answers, in the order of the devices' names where there are several."""
        v, delays, smoothness = state["v"].copy(), state["delays"].copy(), float(state["smoothness"][0])
        share = self.settings.relaxation / (2 * self.most_delays / math.sqrt(len(devices)) + 1)
        for row, name in enumerate(devices):
            if name not in answers:
                continue
            answer = answers[name]
            is_new = (delays[row] < 0).all()
            delays[row] = [*delays[row, 1:], answer.age]
            mean = delays[row][delays[row] >= 0].mean()
            factor = math.log(max(mean, 10.0)) if self.settings.dynamic_step else 1.0
            if not is_new:
                v[row] += min(1.0, factor * share) * (answer.vector - v[row])
            smoothness = max(smoothness, answer.facts.smoothness or 0.0, 1e-12)
        return Folded(state={"delays": delays, "smoothness": np.array([smoothness]), "v": v})


@dataclass(frozen=True, kw_only=True)
class OnlineStep:
    """Projection-free online learning: W ← (1 - s)W + sV, s = 1/√t, in the nuclear ball of radius R.

    V = -R u₁v₁ᵀ of the leading singular pair of 2W + ηG, G being the sum of all subgradients so far: those of a device
    that was away come when it comes. A reconstruction of Yang and Li, AAAI 2020, from its abstract: the capped loss,
    its weights and the decentralised form are left out.
    """

    settings: LinearSettings

    def rounds(self, steps: int) -> int:
        """Return the rounds of so many windows of the streams."""
        return steps

    def shapes(self, devices: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of G and W."""
        return {"g": (devices, size), "w": (devices, size)}

    def extended(self, state: State, known: Sequence[str], devices: Sequence[str], size: int) -> State:
        """Return G and W of more devices, which begin at 0."""
        return {name: _moved(state.get(name, np.zeros(0)), known, devices, size) for name in ("g", "w")}

    def weights(self, state: State) -> Array:
        """Return W."""
        return state["w"]

    def work(self, _state: State, _device: str, _row: int | None, _since: int | None, place: RoundPlace) -> LinearWork:
        """Return the round's window of the stream."""
        return StreamStep(first=place.index * self.settings.window, count=self.settings.window)

    def fold(self, state: State, devices: Sequence[str], answers: Mapping[str, Answer], place: RoundPlace) -> Folded:
        """Return W after one step, and the loss of the round's samples before it."""
        g = state["g"].copy()
        for row, name in enumerate(devices):
            if name in answers:
                g[row] += answers[name].vector
        left, right = leading_pair(self.settings.online_rate * g + 2 * state["w"])
        share = 1 / math.sqrt(place.index + 1)
        w = (1 - share) * state["w"] - share * self.settings.radius * np.outer(left, right)
        return Folded(state={"g": g, "w": w}, objective=sum(each.loss * each.examples for each in answers.values()))


@dataclass(frozen=True, kw_only=True)
class OneExchange:
    """The mixed-effect model: v = (I/a + ΣA_t)⁻¹ Σb_t of the statistics of all devices that answered."""

    settings: LinearSettings

    def rounds(self, _steps: int) -> int:
        """Return 1."""
        return 1

    def shapes(self, _devices: int, _size: int) -> dict[str, tuple[int, ...]]:
        """Return nothing: there is no state."""
        return {}

    def extended(self, state: State, _known: Sequence[str], _devices: Sequence[str], _size: int) -> State:
        """Return the state as it is."""
        return state

    def weights(self, _state: State) -> None:
        """Return None: the shared part is one vector for all."""

    def work(self, _state: State, _device: str, _row: int | None, _since: int | None, _place: RoundPlace) -> LinearWork:
        """Return the model's constants."""
        return MixedEffectPart(shared=self.settings.shared, ridge=self.settings.ridge, width=self.settings.width)

    def fold(self, _state: State, devices: Sequence[str], answers: Mapping[str, Answer], _place: RoundPlace) -> Folded:
        """Return the shared part."""
        vectors = [answers[name].vector for name in devices if name in answers]
        total = np.sum(vectors, axis=0)
        size = len(next(iter(answers.values())).sent)
        return Folded(shared=shared_part(unpacked(total[:-size], size), total[-size:], self.settings.shared))


def linear_rule(strategy: str, settings: LinearSettings, most_delays: int = 0) -> LinearRule | None:
    """Return the rule of a strategy; None for a strategy of models with graphs.

    `most_delays` is how many rounds may close before a device's answer no longer counts.
    """
    match strategy:
        case "mocha" | "dmtrl":
            return Relationship(settings=settings)
        case "proximal_mtl":
            return ProximalStep(settings=settings)
        case "amtl":
            return AsynchronousStep(settings=settings, most_delays=most_delays)
        case "online_primal_dual":
            return OnlineStep(settings=settings)
        case "mixed_effect":
            return OneExchange(settings=settings)
        case _:
            return None
