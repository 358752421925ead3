"""The latency law of each schedule: what an average round commits and how long it takes.

k window, T(n) target forward over n tokens, D(b) drafter step on b branches, J = ceil(k / η) drafter steps,
A accepted length, τ(k) = 1 + P(A >= 1) + … + P(A >= k) expected tokens, h hit rate, o host. One sequence;
the target and the drafter on devices of their own, which do not slow each other. All times in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.planner.acceptance import Acceptance
from specdec.planner.branching import Branching
from specdec.planner.costs import Costs


@dataclass(frozen=True)
class Timing:
    """An average round.

    Attributes:
        tokens: expected tokens committed.
        ms: expected length.
        target: the target at work, exit head included.
        drafter: the drafter at work, branches that are thrown away included.
        exposed: drafting that the target waits for.
    """

    tokens: float
    ms: float
    target: float
    drafter: float
    exposed: float

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per committed token."""
        return self.ms / self.tokens

    @property
    def target_idle(self) -> float:
        """Milliseconds of the round in which the target waits, for drafts, rendezvous or the host."""
        return self.ms - self.target

    @property
    def drafter_idle(self) -> float:
        """Milliseconds of the round in which the drafter waits."""
        return self.ms - self.drafter

    @property
    def overhead(self) -> float:
        """Milliseconds of the round that are rendezvous and host."""
        return self.ms - self.target - self.exposed


def plain(costs: Costs) -> Timing:
    """Decoding without drafts: one token per T(1)."""
    return Timing(tokens=1, ms=costs.plain, target=costs.plain, drafter=0, exposed=0)


def serial(costs: Costs, acceptance: Acceptance, window: int) -> Timing:
    """Draft, then verify: τ(k) tokens in J·D + T(k+1) + o (Leviathan et al., arXiv 2211.17192).

    Raises:
        ValueError: the window reaches beyond what was measured.
    """
    draft, verify = costs.draft(window), costs.verify(window)
    return Timing(acceptance.committed(window), draft + verify + costs.host, verify, draft, exposed=draft)


def pearl(costs: Costs, acceptance: Acceptance, window: int) -> Timing:
    """While the target verifies, the drafter goes on as if all were accepted (PEARL, arXiv 2408.11850).

    In every round the drafter draws a guess of the token behind the window and the next k after it: the paper's
    γ = k + 1 tokens. If the whole window and the guess are accepted, those k are the next window. If not, the next
    round has no window: the target makes one token while the drafter starts afresh (the paper's pre-verify). With
    a_i the acceptance at depth i this is a Markov chain on "was the prepared draft adopted?":

        empty   -> adopted with a_1             commits 1      takes max(T(1),   (k+1 tokens drafted))
        adopted -> adopted with s = a_1…a_{k+1} commits τ(k)   takes max(T(k+1), (k+1 tokens drafted))

    so rounds are empty : adopted as (1 − s) : a_1. With i.i.d. acceptance and (k+1)·D = T the speedup is
    1 / ((1 − α)·(1 + α / (1 − α^(k+1)))), which rises to 1 / (1 − α²) as k grows. The final rendezvous and the
    host come on top of every round.

    A loop that drafts afresh *before* the next verification instead is ``enumeration`` with one branch and
    hits (0, …, 0, a_{k+1}).

    Raises:
        ValueError: the window, or the depth of the guess k + 1, reaches beyond what was measured.
    """
    first, again = acceptance.at(1), acceptance.reach(window + 1)[-1]
    adopted = first / (1 - again + first) if first else 0.0
    draft = costs.draft(window + 1)

    def mean(empty: float, full: float) -> float:
        return (1 - adopted) * empty + adopted * full

    exposed = mean(max(0.0, draft - costs.plain), max(0.0, draft - costs.verify(window)))
    target = mean(costs.plain, costs.verify(window))
    tokens = mean(1.0, acceptance.committed(window))
    return Timing(tokens, target + exposed + costs.final + costs.host, target, draft, exposed)


def enumeration(costs: Costs, acceptance: Acceptance, window: int, branching: Branching) -> Timing:
    """The drafter prepares likely outcomes while the whole target runs (SSD / Saguaro, arXiv 2603.03251).

    τ(k) tokens in max(T(k+1), look + J·D(b)) + final + o, and J·D(1) on top in the 1 − h of rounds whose outcome
    was not prepared. With a look of D(b), drafting costs k + 1 steps: the outcomes behind the last token of the
    window are known only once the drafter has read that token.

    Raises:
        ValueError: the window or the branches reach beyond what was measured, or the hit rates do not fit.
    """
    return _overlapped(costs, acceptance, window, branching, early=0.0, front=0.0, rest=costs.verify(window))


def mirror(costs: Costs, acceptance: Acceptance, window: int, branching: Branching) -> Timing:
    """The drafter prepares what the target's early exit names while the suffix runs (Mirror-SD, arXiv 2510.13161).

    τ(k) tokens in T_prefix + exit head + early + max(T_suffix, J·D(b)) + final + o, and J·D(1) on top in the 1 − h
    of rounds whose outcome was not prepared (the paper leaves these and the exit head out). The drafter's look
    runs beside the prefix; what of it is longer delays the drafter alone.

    Raises:
        ValueError: the branching has no exit, the window or the branches reach beyond what was measured, or the
            hit rates do not fit.
    """
    exit = exit_of(branching)
    front = costs.prefix(window, exit) + costs.exit_head + costs.early
    return _overlapped(costs, acceptance, window, branching, costs.early, front, costs.suffix(window, exit))


def mirror_beside(costs: Costs, acceptance: Acceptance, window: int, branching: Branching) -> Timing:
    """``mirror``, the early exit read out where the drafter is, beside its look: the target does not stop for it.

    τ(k) tokens in max(T(k+1), max(look, T_prefix + early + exit head) + J·D(b)) + final + o, and J·D(1) on top in
    the 1 − h of rounds whose outcome was not prepared.

    Raises:
        ValueError: see ``mirror``.
    """
    front = costs.prefix(window, exit_of(branching)) + costs.early + costs.exit_head
    return _overlapped(costs, acceptance, window, branching, 0.0, front, costs.verify(window) - front)


def exit_of(branching: Branching) -> float:
    """E/N. Raises ValueError where there is no exit."""
    if branching.exit is None:
        raise ValueError("Mirror-SD needs the depth of the early exit: give the branching an exit, E/N")
    return branching.exit


def _overlapped(
    costs: Costs,
    acceptance: Acceptance,
    window: int,
    branching: Branching,
    early: float,
    front: float,
    rest: float,
) -> Timing:
    """Branches roll out from ``front`` on, or from the end of the look, while ``rest`` of the target runs.

    ``front`` is the target's work up to there and the ``early`` rendezvous.
    """
    fresh = costs.draft(window) * (1 - acceptance.hit_rate(window, branching.hits))
    rollout = costs.draft(window, branching.branches)
    late = max(0.0, max(front, costs.look) + rollout - (front + rest))
    return Timing(
        tokens=acceptance.committed(window),
        ms=front + rest + late + costs.final + fresh + costs.host,
        target=front - early + rest,
        drafter=costs.look + rollout + fresh,
        exposed=late + fresh,
    )


def ceiling(costs: Costs, acceptance: Acceptance) -> float:
    """The speedup over plain decoding that no schedule above exceeds, whatever its window, hits and branches.

    min(1 / (1 − α), η / c) where every token is the drafter's work. A schedule that gets each round's correction
    from the target, with a look shorter than D / η, has up to 1 + η·(1 − look / T) / c in place of η / c. Plain
    decoding's 1 is always there. Holds where wider steps and more branches cost no less than width 1, for η >= 1.
    """
    drafter = costs.drafter(1) / costs.tokens_per_step
    if drafter == 0:
        return acceptance.limit
    bounds = (1.0, costs.plain / drafter, 1 + (costs.plain - costs.look) / drafter)
    return min(acceptance.limit, max(bounds))
