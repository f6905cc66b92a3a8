"""The regression gate: exit 1 only when the interval says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infer.errors import ArtifactError, InputError
from infer.measure.comparison import Asked, compare
from infer.measure.gate import changes, changes_within, parse_condition
from infer.measure.record import Conditions, Entry, Record, read_record
from infer.parity import TOLERANCES
from tests.simulated import FEEDS, Simulated


def record(*candidates: Simulated, noise: float = 0.01, work_ms: float = 0.1, cpu: str = "a cpu") -> Record:
    """What a comparison of `candidates` would write."""
    found = compare(candidates, FEEDS, Asked(seconds=0.0), TOLERANCES)
    return Record(
        Conditions(
            created="2026-01-01T00:00:00+00:00",
            harness="built-in",
            seconds=0.0,
            threads=2,
            noise=noise,
            work_ms=work_ms,
            interrupted=False,
            cpu=cpu,
            isa=("avx2",),
            cores=2,
            memory_bytes=2**30,
            system="Linux-x86_64",
            versions={},
        ),
        tuple(Entry(c.name, c.described) for c in candidates),
        found.series,
    )


TEN_PERCENT = [parse_condition("p99 > +10%")]


def test_a_planted_slowdown_of_20_percent_fails_and_one_of_0_does_not() -> None:
    """Against a baseline, with other random latencies in each."""
    baseline = record(Simulated("net", 1.0, seed=1))
    (slower,) = changes(record(Simulated("net", 1.2, seed=2)), baseline, TEN_PERCENT)
    assert slower.failed
    assert slower.ratio.value == pytest.approx(1.2, rel=0.05)
    for seed in range(2, 12):
        (same,) = changes(record(Simulated("net", 1.0, seed=seed)), baseline, TEN_PERCENT)
        assert not same.failed
        assert not same.undecided


def test_candidates_of_one_run_are_gated_against_the_first() -> None:
    """Without a baseline, the first is what others must not be slower than."""
    now = record(Simulated("old"), Simulated("new", 1.2, seed=1), Simulated("same", 1.0, seed=2))
    found = {change.candidate: change for change in changes_within(now, TEN_PERCENT)}
    assert set(found) == {"new", "same"}
    assert found["new"].failed
    assert not found["same"].failed


def test_less_throughput_fails_and_more_does_not() -> None:
    """20 % slower is 17 % less throughput."""
    baseline = record(Simulated("net", 1.0, seed=1))
    conditions = [parse_condition("throughput < -10%")]
    assert changes(record(Simulated("net", 1.2, seed=2)), baseline, conditions)[0].failed
    assert not changes(record(Simulated("net", 0.8, seed=2)), baseline, conditions)[0].failed


def test_where_nothing_was_measured_a_baseline_says_nothing() -> None:
    """All candidates were left out; without a condition there is nothing to hold, and no error."""
    baseline = record(Simulated("net"))
    nothing = replace(baseline, conditions=replace(baseline.conditions, work_ms=0.0), series=())
    assert changes(nothing, baseline, []) == []
    with pytest.raises(InputError, match="it has net, single-stream"):
        changes(nothing, baseline, TEN_PERCENT)


def test_what_the_machine_did_is_not_held_against_a_candidate() -> None:
    """If the fixed work, too, takes 20 % longer, or spreads by as much, nothing can be said."""
    baseline = record(Simulated("net", 1.0, seed=1))
    slower = Simulated("net", 1.2, seed=2)
    for conditions in ({"work_ms": 0.12}, {"noise": 0.2}):
        for text in ("p99 > +10%", "throughput < -10%"):
            (change,) = changes(record(slower, **conditions), baseline, [parse_condition(text)])
            assert change.undecided
            assert not change.failed
    # a machine that became faster excuses nothing
    assert changes(record(slower, work_ms=0.08), baseline, TEN_PERCENT)[0].failed


def test_baselines_that_say_nothing_are_refused() -> None:
    """Another machine, another candidate, a percentile that so few queries do not have."""
    now = record(Simulated("net"))
    with pytest.raises(InputError, match="another machine \\(other cpu, 2 cores\\)"):
        changes(now, record(Simulated("net"), cpu="other cpu"), TEN_PERCENT)
    with pytest.raises(InputError, match="it has other, single-stream"):
        changes(now, record(Simulated("other")), TEN_PERCENT)
    few = replace(now, series=tuple(replace(s, latency_ms={}) for s in now.series))
    with pytest.raises(InputError, match=r"say nothing of p99; measure for longer"):
        changes(few, now, TEN_PERCENT)


@pytest.mark.parametrize("text", ["p99", "p98 > +10%", "p99 > 10", "p99 > -10%", "throughput < +5%", "x\n"])
def test_conditions_that_are_none_are_refused(text: str) -> None:
    """With the form, the metrics, or what would make sense."""
    with pytest.raises(InputError, match="p99"):
        parse_condition(text)


def test_a_condition_prints_as_it_is_written() -> None:
    """So that what is printed can be copied."""
    for text in ("p99 > +10%", "throughput < -5%", "p99.9 > +0.5%"):
        assert str(parse_condition(text)) == text


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    """All of it; other versions, unknown keys and other files are refused."""
    written = record(Simulated("a"), Simulated("b", 1.2))
    path = tmp_path / "record.json"
    written.write(path)
    assert read_record(path) == written
    data = json.loads(path.read_text())
    for changed, why in (
        ({**data, "schema_version": 99}, "schema_version is 99, and this release reads 1"),
        ({**data, "extra": 1}, "extra"),
        ({"schema_version": 1}, "record"),
        ([], "schema_version is None"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match=why):
            read_record(path)
    with pytest.raises(ArtifactError, match="nothing"):
        read_record(tmp_path / "nothing.json")
