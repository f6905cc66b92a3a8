"""What optimize gives, over the best of its peers, from records."""

from __future__ import annotations

import re

from bench.peers.standing import standing
from infer.measure.record import Entry, Record
from tests.benched import CONDITIONS, side_by_side

TIMES = {
    "infer": 10.0,
    "infer-optimized": 8.0,
    "infer-budget": 4.0,
    "onnxruntime": 10.0,
    "openvino": 9.0,
    "openvino-int8": 5.0,
    "optimum-int8-avx2": 6.0,
    "optimum-O3": 1.0,  # it approximates in float32, so it is best of neither kind
}


def made_up(times: dict[str, float]) -> Record:
    """Of a family, with these milliseconds."""
    said = {
        "openvino-int8": "int8; cosine to infer 0.9972 mean, 0.9971 min of 4 inputs",
        "optimum-int8-avx2": "int8; cosine to infer 0.9991 mean, 0.9980 min of 4 inputs",
    }
    entries = tuple(Entry(name, said.get(name, name)) for name in times)
    series = tuple(side_by_side("single-stream", {}, times))
    return Record(CONDITIONS, entries, series)


def test_ratios_are_over_the_fastest_of_each_kind() -> None:
    """Above 1 infer is faster. A peer whose answers are too far off is not best at equal accuracy; and a
    family of which nothing optimized was measured is named, and has no part in means."""
    peers = {name: ms for name, ms in TIMES.items() if not name.startswith("infer-")}
    lines = list(standing({"net": made_up(TIMES), "other": made_up(peers)}))
    assert lines[0] == "How many times as fast, single-stream"
    (row,) = [line for line in lines if line.startswith("| net |")]
    ratios = [float(found) for found in re.findall(r"×(\d+\.\d+) \(", row)]
    for found, expected in zip(ratios, (10 / 8, 9 / 8, 9 / 4, 6 / 4, 5 / 4), strict=True):
        assert abs(found / expected - 1) < 0.03
    assert " openvino |" in row
    assert "optimum-int8-avx2 (cos 0.9991, min 0.9980) |" in row
    assert "openvino-int8 (cos 0.9972, min 0.9971) |" in row
    assert not [line for line in lines if line.startswith("| other |")]
    assert lines[-1] == "Without infer-optimized or infer-budget beside a peer: other"
    means = [line for line in lines if line.startswith("| geometric mean |")]
    assert [found.count(" of 1 ") for found in means] == [5]


def test_records_of_peers_alone_have_no_table() -> None:
    lines = list(standing({"net": made_up({"infer": 10.0, "onnxruntime": 10.0})}))
    assert lines == ["Without infer-optimized or infer-budget beside a peer: net"]
