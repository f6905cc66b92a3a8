"""Comparisons of candidates whose latencies are known beforehand."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from infer.errors import FeedError, InputError
from infer.measure.comparison import Asked, Found, compare
from infer.measure.queries import Call
from infer.measure.rest import settle
from infer.measure.rounds import MIN_ROUNDS, take_turns
from infer.parity import TOLERANCES
from tests.simulated import FEEDS, Simulated

SHORT = Asked(seconds=0.0)


def compared(*candidates: Simulated, asked: Asked = SHORT) -> Found:
    return compare(candidates, FEEDS, asked, TOLERANCES)


def test_a_planted_difference_is_found_and_a_lack_of_one_is_too() -> None:
    """20 % slower is "slower" by about that; the same is never called faster or slower."""
    found = compared(Simulated("a"), Simulated("b", 1.2, seed=1), Simulated("c", 1.0, seed=2))
    ratios = {series.candidate: series for series in found.series}
    assert ratios["a"].ratio is None
    assert ratios["b"].verdict == "slower"
    assert ratios["b"].ratio is not None
    assert ratios["b"].ratio.value == pytest.approx(1.2, rel=0.02)
    assert ratios["c"].verdict in ("alike", "undecided")


def test_who_answers_otherwise_or_fails_is_left_out_where_it_does() -> None:
    """A wrong answer is never timed; one that fails at a size is timed at the others."""
    asked = Asked(seconds=0.0, sweep={"batch": (1, 4)})
    found = compared(Simulated("a"), Simulated("wrong", error=0.5), Simulated("small", most=2), asked=asked)
    assert {(s.candidate, s.sizes["batch"]) for s in found.series} == {("a", 1), ("a", 4), ("small", 1)}
    reasons = {(e.candidate, e.sizes["batch"]): e.reason for e in found.exclusions}
    assert set(reasons) == {("wrong", 1), ("wrong", 4), ("small", 4)}
    assert "outside the tolerance" in reasons["wrong", 1]
    assert reasons["small", 4] == "at most 2 rows"


def test_offline_takes_each_candidates_best_batch() -> None:
    """With 1 ms a call and nothing for a row, 32 rows at once are best, and throughput is 32,000/s."""
    (series,) = compared(Simulated("a"), asked=Asked(("offline",), seconds=0.0)).series
    assert series.samples in (1, 2, 4, 8, 16, 32)
    assert series.throughput.value == pytest.approx(1e3 * series.samples, rel=0.05)


def test_multi_stream_asks_all_samples_at_once() -> None:
    """A query of 8 samples of 0.5 ms, and 1 ms for itself, takes 5 ms."""
    (series,) = compared(
        Simulated("a", 1.0, 0.5), asked=Asked(("multi-stream",), seconds=0.0, samples=8)
    ).series
    assert series.samples == 8
    assert series.latency_ms["p50"].value == pytest.approx(5.0, rel=0.02)


def test_the_server_scenario_compares_rates() -> None:
    """Half the service time serves about twice the rate within ten service times."""
    asked = Asked(("server",), seconds=2.0, bound_ms=20.0)
    slow, fast = compared(Simulated("slow", 2.0), Simulated("fast", 1.0, seed=1), asked=asked).series
    assert slow.bound_ms == fast.bound_ms == 20.0
    assert fast.throughput.value > 1.7 * slow.throughput.value
    assert fast.ratio is not None
    assert fast.ratio.value < 0.6
    assert {rate.met for rate in fast.rates} == {True, False}
    assert fast.latency_ms["p99"].value <= 20.0


def test_scenarios_and_bounds_that_cannot_be_are_refused() -> None:
    """Before anything is measured."""
    with pytest.raises(InputError, match="no scenario 'fastest'; choose from single-stream, multi-stream"):
        Asked(("fastest",))
    with pytest.raises(InputError, match="needs a latency bound"):
        Asked(("server",))


def test_a_bound_that_cannot_be_met_loses_nothing_else() -> None:
    """Of a slow candidate and a fast one, with 2 ms, the fast one is measured; so is the other scenario."""
    asked = Asked(("single-stream", "server"), bound_ms=2.0, seconds=1.0)
    found = compared(Simulated("slow", 5.0), Simulated("fast", 0.5, seed=1), asked=asked)
    measured = {(series.candidate, series.scenario): series for series in found.series}
    assert set(measured) == {
        ("slow", "single-stream"),
        ("fast", "single-stream"),
        ("fast", "server"),
    }
    assert measured["fast", "server"].ratio is None
    (left_out,) = found.exclusions
    assert left_out.candidate == "slow"
    assert "within 2 ms; the best reachable is 5" in left_out.reason


def test_a_batch_that_a_point_names_is_the_batch_of_every_scenario() -> None:
    """Whatever is best, or how many samples a query has by default."""
    asked = Asked(("single-stream", "multi-stream", "offline"), seconds=0.0, sizes={"batch": 3})
    assert [series.samples for series in compared(Simulated("a"), asked=asked).series] == [3, 3, 3]


def test_an_unknown_dim_is_an_error_of_every_candidate() -> None:
    """All are left out, with the dims that there are."""
    found = compared(Simulated("a"), asked=Asked(seconds=0.0, sizes={"length": 3}))
    assert found.series == ()
    assert "no dim 'length' that may vary; there is batch" in found.exclusions[0].reason
    assert FeedError  # what `resized` raises


def test_candidates_take_turns_in_every_round() -> None:
    """Each is asked in each round, in an order that changes, so that none always comes after another."""
    log: list[str] = []

    def logged(name: str) -> Call:
        return Call(lambda: log.append(name) or time.sleep(0.021))  # type: ignore[func-returns-value]

    measured = take_turns({"a": logged("a"), "b": logged("b")}, 0.0)
    assert [len(times.rounds) for times in measured.times.values()] == [MIN_ROUNDS, MIN_ROUNDS]
    turns = log[-4 * MIN_ROUNDS :]
    rounds = {tuple(turns[i : i + 4]) for i in range(0, len(turns), 4)}
    assert rounds == {("a", "a", "b", "b"), ("b", "b", "a", "a")}


def test_the_first_query_of_a_turn_is_not_counted() -> None:
    """It finds the caches as another candidate left them; one that is alone has no such turns."""

    class Cold(Steady):
        def turn(self, count: int) -> np.ndarray:
            return np.array([95.0, *super().turn(count - 1)])

    measured = take_turns({"a": Cold(), "b": Steady()}, 0.0)
    assert measured.times["a"].medians == measured.times["b"].medians == [21.0] * MIN_ROUNDS
    assert measured.times["a"].queries == MIN_ROUNDS
    alone = take_turns({"a": Cold()}, 0.0)
    assert alone.times["a"].medians == [95.0] * MIN_ROUNDS


def test_long_queries_are_all_counted() -> None:
    """What is in the caches hardly matters to them, and a second one would take as long again."""

    class Long(Steady):
        def turn(self, count: int) -> np.ndarray:
            assert count == 1
            return 20 * super().turn(count)

    measured = take_turns({"a": Long(), "b": Long()}, 0.0)
    assert measured.times["a"].medians == [420.0] * MIN_ROUNDS


@pytest.mark.parametrize(
    ("busy", "steps"),
    [
        ([0.0] * 4, 2),
        ([1.0, 1.0, 0.0, 0.0], 4),
        ([1.0, 0.0, 1.0, 0.0, 0.0], 5),  # pushed aside for a step, it spins on
    ],
)
def test_threads_that_spin_are_waited_for(
    busy: list[float], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next candidate finds the cores free: settling lasts until this process's threads are at rest.
    `busy` is the share of a core that they take in each step."""
    wall_s = worked_s = 0.0
    slept = 0

    def sleep(seconds: float) -> None:
        nonlocal wall_s, worked_s, slept
        worked_s += busy[slept] * seconds
        wall_s += seconds
        slept += 1

    clock = SimpleNamespace(perf_counter=lambda: wall_s, process_time=lambda: worked_s, sleep=sleep)
    monkeypatch.setattr("infer.measure.rest.time", clock)
    settle()
    assert slept == steps


def test_who_never_rests_is_waited_for_a_while_only() -> None:
    """A thread of the process that works on does not stop a measurement: the wait ends."""
    done = threading.Event()
    spinning = threading.Thread(target=lambda: [None for _ in iter(done.is_set, True)])
    spinning.start()
    settle()
    assert spinning.is_alive()
    done.set()
    spinning.join()


def test_candidates_rest_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one leaves running is not charged to the next; a candidate alone has nobody to wait for."""
    log: list[str] = []
    monkeypatch.setattr("infer.measure.rounds.settle", lambda: log.append("rest"))

    def logged(name: str) -> Call:
        return Call(lambda: log.append(name) or time.sleep(0.021))  # type: ignore[func-returns-value]

    take_turns({"a": logged("a"), "b": logged("b")}, 0.0)
    assert log[-1] == "rest"
    asked = "".join(log).replace("rest", "-")
    assert not {"ab", "ba"} & {asked[i : i + 2] for i in range(len(asked))}
    log.clear()
    take_turns({"a": logged("a")}, 0.0)
    assert "rest" not in log


def test_candidates_may_be_started_several_times() -> None:
    """Each start has its share of the rounds, warms up anew, and is told apart in what was measured."""
    log: list[str] = []
    measured = take_turns(
        {"a": Steady(), "b": Steady()}, 0.0, log.append, starts=3, restart=lambda: log.append("restarted")
    )
    assert measured.starts == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert [len(times.rounds) for times in measured.times.values()] == [15, 15]
    assert log.count("restarted") == 2
    assert log[0] == "start 1 of 3: warming up a"
    assert log[log.index("restarted") + 1] == "start 2 of 3: warming up a"


class Steady:
    """Always takes 21 ms, so that warming up takes four turns; the turn `until` is interrupted."""

    def __init__(self, until: int | None = None) -> None:
        self._until, self._turns = until, 0

    def turn(self, count: int) -> np.ndarray:
        self._turns += 1
        if self._turns == self._until:
            raise KeyboardInterrupt
        return np.full(count, 21.0)

    def serve(self, due_s: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def test_an_interrupt_keeps_the_rounds_that_were_finished() -> None:
    """Ctrl-C in the sixth round: the five before it count, for both candidates alike; before the third,
    nothing does."""
    measured = take_turns({"a": Steady(), "b": Steady(until=4 + 6)}, 60.0)
    assert measured.interrupted
    assert [len(times.rounds) for times in measured.times.values()] == [5, 5]
    with pytest.raises(KeyboardInterrupt):
        take_turns({"a": Steady(), "b": Steady(until=4 + 2)}, 60.0)


def test_an_interrupt_at_a_later_point_keeps_the_earlier_ones() -> None:
    """What was measured at the first point is returned."""

    class Stubborn(Simulated):
        def run(self, feeds: object) -> dict[str, np.ndarray]:
            if len(feeds["x"]) == 4:  # type: ignore[index]
                raise KeyboardInterrupt
            return super().run(feeds)  # type: ignore[arg-type]

    found = compared(Stubborn("a"), asked=Asked(seconds=0.0, sweep={"batch": (1, 2, 4, 8)}))
    assert found.interrupted
    assert [series.sizes["batch"] for series in found.series] == [1, 2]
