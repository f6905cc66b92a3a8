"""The page of `infer bench --html`: its numbers are the record's, and it needs, does and leaks nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from infer import schema
from infer.errors import ArtifactError
from infer.measure.page import page
from infer.measure.plots import plots
from infer.measure.record import Record, Series, read_record
from infer.measure.statistics import Estimate
from tests.attacks.test_terminal import UNSEEN
from tests.benched import FIRST, OTHER, THIRD, plain, rich, series_of
from tests.command import infer_command
from tests.test_command_ends import ENVIRONMENT

EVIL = (
    "</title></style></svg><script>owned=1</script><img src=x onerror=owned=1>\"'&amp;"
    f"$\\frac{{$\x1b[2J\x00\ufffe\uffff\n{UNSEEN}\u202e😀漢字{'long ' * 40}"
)


@dataclass
class Seen:
    """What is in a page: every tag with its attributes, its text, and its tables by caption."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def seen(document: str) -> Seen:
    """Read a page; tags that do not close are an error."""
    found, path = Seen(), list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.tags.append((tag, {name: value or "" for name, value in attrs}))
            if tag in ("meta", "br"):
                return
            path.append(tag)
            if tag == "table":
                self.rows: list[list[str]] = []
            elif tag == "tr":
                self.rows.append([])
            elif tag in ("td", "th"):
                self.rows[-1].append("")

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.tags.append((tag, {name: value or "" for name, value in attrs}))

        def handle_endtag(self, tag: str) -> None:
            assert path.pop() == tag

        def handle_data(self, data: str) -> None:
            if "style" in path:
                return
            found.texts.append(data)
            if "caption" in path:
                found.tables[data] = self.rows
            elif path[-1:] == ["p"] and "figure" in path:
                found.titles.append(data)
            elif {"td", "th"} & set(path):
                self.rows[-1][-1] += data

    reader = Reader()
    reader.feed(document)
    reader.close()
    assert path == []
    return found


def three(value: float) -> str:
    """Three digits, as people read them; large numbers in full."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def with_interval(estimate: Estimate) -> str:
    return f"{three(estimate.value)} {three(estimate.low)}–{three(estimate.high)}"


@pytest.fixture(scope="module")
def full() -> Seen:
    return seen(page([rich()], ["rich.json"]))


def test_every_series_has_its_row_with_its_numbers(full: Seen) -> None:
    """Percentiles, mean, throughput and ratio of each series stand in a row, with intervals."""
    record = rich()
    for series in record.series:
        (rows,) = (rows for caption, rows in full.tables.items() if caption.startswith(series.scenario))
        header = rows[0]
        (row,) = (
            row
            for row in rows[1:]
            if row[0] == series.candidate
            and ("batch" not in header or row[header.index("batch")] == str(series.sizes["batch"]))
        )
        cells = dict(zip(header, row, strict=True))
        for name, estimate in series.latency_ms.items():
            assert cells[f"{name}, ms"] == with_interval(estimate)
        assert cells["mean, ms"] == with_interval(series.mean_ms)
        assert cells["samples/s"] == with_interval(series.throughput)
        assert (cells["samples a query"], cells["queries"]) == (str(series.samples), "1200")
        if series.ratio is None:
            assert (cells["time to the first's"], cells["verdict"]) == ("–", "")
        else:
            assert cells["time to the first's"] == f"×{with_interval(series.ratio)}"
            assert cells["verdict"] == series.verdict
        assert ("had not come to rest" in row) is not series.stable


def test_no_number_of_a_table_comes_from_elsewhere(full: Seen) -> None:
    """Every number in a table is one of the record, or one of the two that follow from a limit."""
    record = rich()
    known = {spelt for number in _numbers(record.to_data()) for spelt in _spellings(number)}
    for series in record.series:
        if series.limit is not None:
            flops, moved = series.limit.gflop * 1e9, series.limit.megabytes * 1e6
            seconds = series.latency_ms["p50"].value / 1e3
            known |= {three(flops / moved), three(flops / seconds / 1e9)}
    cells = [cell for rows in full.tables.values() for row in rows[1:] for cell in row]
    numbers = {
        part
        for cell in cells
        for part in re.split(r"[ –×]", cell)
        if re.fullmatch(r"[\d.]+(e-\d+)?%?", part) and not part.count(".") > 1
    }
    assert len(numbers) > 200
    assert numbers - known == set()


def _numbers(data: Any) -> Iterator[float]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _numbers(item)
    elif isinstance(data, str):
        yield from map(float, re.findall(r"\d+(?:\.\d+)?", data))
    elif data is not None:
        yield float(data)


def _spellings(number: float) -> set[str]:
    found = {three(number), f"{number:g}", f"{100 * number:.1f}%"}
    return found | {f"{number / unit:.1f}" for unit in (2**20, 2**30)}


def test_what_was_excluded_is_said_with_the_reason(full: Seen) -> None:
    """An excluded candidate is named with its reason, and is in no table of numbers."""
    assert "broken.onnx : last_hidden_state differs: 0.13 > 2e-05" in full.text
    named = [caption for caption, rows in full.tables.items() if any("broken.onnx" in row for row in rows)]
    assert named == ["Candidates"]


def test_findings_say_the_verdicts(full: Seen) -> None:
    """Verdicts are sentences; what speaks against the numbers is said, too."""
    assert f"{OTHER} has a p90 of 4.16 to 40.9 ms; slower than {FIRST} at all 5 points" in full.text
    assert re.search(rf"{THIRD} answers 1110 samples/s \([\d–]+\); faster than", full.text)
    assert "Warming up did not come to rest everywhere" in full.text
    record = rich()
    noisy = replace(record, conditions=replace(record.conditions, noise=0.31, interrupted=True))
    invalid = replace(noisy.series[0], validity="INVALID: too few queries")
    text = seen(page([replace(noisy, series=(invalid, *noisy.series[1:]))], ["a"])).text
    for words in ("the same work took ±31%", "was interrupted", "single-stream: INVALID: too few queries."):
        assert words in text


def test_an_undecided_ratio_is_not_called_anything() -> None:
    """Where the interval holds 1, the page says that it is too noisy to say."""
    first = series_of(FIRST, "single-stream", {"batch": 1}, 1.4)
    other = replace(first, candidate=OTHER, ratio=Estimate(0.97, 0.9, 1.05), verdict="undecided")
    text = seen(page([replace(plain(), series=(first, other))], ["a"])).text
    assert "too noisy to say; measure for longer with --seconds, ×0.970 of the time (0.900–1.05)" in text
    assert "faster than" not in text
    assert "slower than" not in text


def test_conditions_stand_beside_the_numbers(full: Seen) -> None:
    """Machine, versions, threads, harness, noise and date are on the page."""
    rows = dict(full.tables["Where, when and how"][1:])
    assert rows["CPU"] == "Some CPU @ 2.50GHz"
    assert rows["onnxruntime"] == "1.28.0"
    assert rows["measured"] == "2026-03-01 12:00:00 UTC"
    assert (rows["threads"], rows["harness"], rows["noise of the machine"]) == ("2", "built-in", "±2.1%")
    assert rows["peak with threads 2"] == "206 GFLOP/s, 29.0 GB/s, last cache 32.0 MiB"


# what a plot is called → a record without its data
WITHOUT: dict[str, Callable[[Record], Record]] = {
    "Time to the first's": lambda r: _each(r, ratio=None, verdict=None),
    "p90 over batch": lambda r: replace(
        r, series=tuple(s for s in r.series if s.sizes.get("batch", 1) == 1)
    ),
    "Throughput against latency, single-stream": lambda r: _each(r, samples=3),
    "Throughput against latency, server": lambda r: _each(r, rates=()),
    "Roofline": lambda r: replace(r, conditions=replace(r.conditions, peaks=())),
    "Roofline, threads 2": lambda r: _each(r, limit=None),
    "Cold start": lambda r: replace(r, cold_starts=()),
    "Peak memory": lambda r: replace(r, cold_starts=()),
    "Where an answer's time goes": lambda r: replace(r, waterfalls=()),
    "Time by operator": lambda r: _profiles(r, operators=()),
    "Time by module": lambda r: _profiles(r, modules=()),
    "Latency": lambda r: replace(r, series=()),
}


def _each(record: Record, **changes: Any) -> Record:
    return replace(record, series=tuple(replace(s, **changes) for s in record.series))


def _profiles(record: Record, **changes: Any) -> Record:
    return replace(record, profiles=tuple(replace(p, **changes) for p in record.profiles))


@pytest.mark.parametrize("name", WITHOUT)
def test_a_plot_is_there_only_with_its_data(full: Seen, name: str) -> None:
    """Every kind of plot is on the page of a full record, and gone without its data."""
    assert any(title.startswith(name) for title in full.titles)
    order = {FIRST: 0, OTHER: 1, THIRD: 2}
    without = [plot.title for some in plots(WITHOUT[name](rich()), order).values() for plot in some]
    assert not any(title.startswith(name) for title in without)
    assert set(without) < set(full.titles)


def test_one_candidate_at_one_point_has_one_plot() -> None:
    """The least record gives the distribution of latencies, and no empty plots or headings."""
    assert seen(page([plain()], ["a"])).titles == ["Latency, single-stream, batch 1"]


def test_a_record_of_nothing_says_so() -> None:
    """All candidates may have been excluded."""
    assert "Nothing was measured." in seen(page([replace(plain(), series=())], ["a"])).text


def test_nothing_in_a_record_can_act_on_the_page() -> None:
    """Texts of a record, wherever they are, are shown and neither markup, maths nor invisible."""
    evil = poisoned(rich())
    document = page([evil, evil], [EVIL, EVIL])
    found = seen(document)
    assert {tag for tag, _ in found.tags} <= TAGS
    for _, attributes in found.tags:
        assert set(attributes) <= ATTRIBUTES
        assert not any(char in "".join(attributes.values()) for char in UNSEEN)
    assert not re.search(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e{UNSEEN}\ufffe\uffff]", document)
    assert r"<script>owned=1</script><img src=x onerror=owned=1>" in found.text
    assert r"$\frac{$\x1b[2J\x00\ufffe\uffff\n" in found.text
    assert "owned=1</script>" not in document


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "h2", "h3", "p"),
    *("ul", "li", "strong", "span", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "small"),
    *("figure", "figcaption", "svg", "g", "path", "text", "defs", "use", "clippath", "rect", "pattern"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "scope", "tabindex", "role", "id"),
    *("aria-label", "aria-hidden", "viewbox", "width", "height", "d", "style", "clip-path", "transform"),
    *("x", "y", "href", "patternunits"),
}


def poisoned(record: Record) -> Record:
    """Every text of the record is replaced by what would do harm, and names of candidates stay apart."""
    data = _with_evil(record.to_data())
    return schema.decode(Record, json.loads(json.dumps(data)), "the record")


WORDS = ("verdict", "bound")
"""These are one of a few words, or the record is refused when it is read."""


def _with_evil(data: Any) -> Any:
    if isinstance(data, dict):
        keep = {f.name for f in itertools.chain(*map(dataclasses.fields, _classes()))} | {"p50", "p90"}
        keep |= {"p95", "p99", "p99.9"}
        return {
            key if key in keep else f"{key}{EVIL}": value if key in WORDS else _with_evil(value)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [_with_evil(item) for item in data]
    return f"{data}{EVIL}" if isinstance(data, str) else data


def _classes() -> Iterator[type]:
    from infer.measure import record

    for item in vars(record).values():
        if isinstance(item, type) and dataclasses.is_dataclass(item):
            yield item


def test_the_page_refers_to_nothing_but_itself(full: Seen) -> None:
    """No address, one id each, every reference resolves, and a policy that forbids the rest."""
    ids = Counter(attributes["id"] for _, attributes in full.tags if "id" in attributes)
    assert ids
    assert set(ids.values()) == {1}
    referred = set()
    for _, attributes in full.tags:
        for name, value in attributes.items():
            if name == "href":
                assert value.startswith("#")
                referred.add(value[1:])
            if name != "aria-label":
                referred |= set(re.findall(r"url\(#([^)]+)\)", value))
                assert "//" not in value
    assert referred
    assert referred <= set(ids)
    (policy,) = (a["content"] for tag, a in full.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.split("; ")[:2] == ["default-src 'none'", "style-src 'unsafe-inline'"]
    assert "@import" not in page([plain()], ["a"])
    assert "url(" not in files("infer.measure").joinpath("page.css").read_text()


def test_every_plot_is_told_to_those_who_do_not_see_it(full: Seen) -> None:
    """Drawings have a role and a label with numbers; swatches of legends are hidden instead."""
    drawings = [a for tag, a in full.tags if tag == "svg"]
    told = [a["aria-label"] for a in drawings if a.get("role") == "img"]
    assert len(told) == len(full.titles) > 15
    assert all(re.search(r"\d", label) for label in told)
    assert all(a.get("role") == "img" or a["aria-hidden"] == "true" for a in drawings)
    assert all(not re.search(r"#[0-9a-f]{6}", a.get("style", "")) for _, a in full.tags)


def test_the_same_records_give_the_same_page() -> None:
    """The page is a function of the records: no date of its own, no random id."""
    record = replace(rich(), series=rich().series[:6], profiles=())
    assert page([record], ["a"]) == page([record], ["a"])


# --- two records


def _slower(record: Record, factor: float) -> Record:
    """The same measurement on a machine that takes `factor` times as long."""

    def times(estimate: Estimate, by: float) -> Estimate:
        return Estimate(estimate.value * by, estimate.low * by, estimate.high * by)

    def one(s: Series) -> Series:
        return replace(
            s,
            latency_ms={name: times(e, factor) for name, e in s.latency_ms.items()},
            medians_ms=tuple(factor * ms for ms in s.medians_ms),
            throughput=times(s.throughput, 1 / factor),
        )

    return replace(record, series=tuple(map(one, record.series)))


def test_two_records_are_compared() -> None:
    """Now over then for all that both have, by time, and by rate in the server scenario."""
    old, new = _slower(rich(), 2.0), rich()
    found = seen(page([old, new], ["old.json", "new.json"]))
    rows = found.tables["Now beside then, measured apart"]
    assert len(rows) == 1 + len(new.series)
    header = rows[0]
    for row, series in zip(rows[1:], new.series, strict=True):
        cells = dict(zip(header, row, strict=True))
        assert cells["time, now to then"].startswith("×0.500 ")
        assert cells["verdict"] == "faster"
        assert cells["p50 now, ms"] == with_interval(series.latency_ms["p50"])
        assert cells["samples/s now"] == with_interval(series.throughput)
    assert f"{FIRST} : faster than then at all 5 points, ×0.500 of the time" in found.text
    assert sum(title.startswith("Now to then") for title in found.titles) == 3
    back = seen(page([plain(), _slower(plain(), 2.0)], ["new.json", "old.json"]))
    assert re.search(rf"{FIRST} : slower than then, ×2\.00 of the time", back.text)


def test_queries_of_another_size_are_compared_by_the_sample() -> None:
    """The offline scenario chooses its batch anew: twice the samples in twice the time are alike."""
    then = replace(plain(), series=(series_of(FIRST, "offline", {}, 8.0, samples=4),))
    now = replace(plain(), series=(series_of(FIRST, "offline", {}, 16.0, seed=0, samples=8),))
    (row,) = seen(page([then, now], ["a", "b"])).tables["Now beside then, measured apart"][1:]
    assert row[-1] == "alike"


def test_records_without_anything_in_common_say_so() -> None:
    """Another point or another bound is not compared."""
    other = replace(plain(), series=(series_of(FIRST, "single-stream", {"batch": 2}, 1.4),))
    found = seen(page([plain(), other], ["a", "b"]))
    assert "They have no candidate, scenario and sizes in common." in found.text
    assert "Now beside then, measured apart" not in found.tables


def test_differences_of_conditions_are_marked() -> None:
    """Other versions or another machine are seen at once."""
    old = replace(plain(), conditions=replace(plain().conditions, cpu="Other CPU", versions={"numpy": "1"}))
    found = seen(page([old, plain()], ["a", "b"]))
    rows = {row[0]: row[1:] for row in found.tables["Where, when and how"]}
    assert rows["CPU"] == ["Other CPU", "Some CPU @ 2.50GHz", "differs"]
    assert rows["onnxruntime"] == ["–", "1.28.0", "differs"]
    assert rows["threads"] == ["2", "2", ""]
    assert "They come from different machines" in found.text


# --- the command


def test_records_become_a_page(tmp_path: Path) -> None:
    """`infer bench A.json B.json --html FILE` writes the page of both."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, record in zip(paths, (_slower(plain(), 1.2), plain()), strict=True):
        record.write(path)
    outcome = infer_command("bench", *paths, "--html", tmp_path / "page.html")
    assert (outcome.code, outcome.err) == (0, "")
    names = [str(path) for path in paths]
    assert (tmp_path / "page.html").read_text("utf-8") == page([read_record(p) for p in paths], names)


def test_a_measurement_becomes_a_page(net: Path, tmp_path: Path) -> None:
    """What was just measured is on the page, beside the baseline it was compared with."""
    first = infer_command("bench", net, "--seconds", 0.05, "-o", tmp_path / "a.json", "--json")
    assert first.code == 0, first.err
    at = tmp_path / "page.html"
    outcome = infer_command(
        "bench", net, "--seconds", 0.05, "--json", "--html", at, "--baseline", tmp_path / "a.json"
    )
    assert outcome.code == 0, outcome.err
    found = seen(at.read_text("utf-8"))
    (series,) = json.loads(outcome.out)["series"]
    rows = found.tables["Now beside then, measured apart"]
    assert dict(zip(*rows, strict=True))["samples/s now"] == with_interval(Estimate(**series["throughput"]))


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A folder is refused, and no draft stays."""
    plain().write(tmp_path / "a.json")
    (tmp_path / "taken").mkdir()
    outcome = infer_command("bench", tmp_path / "a.json", "--html", tmp_path / "taken")
    assert outcome.code == 1
    assert "it is a folder; give the name of a file" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "taken"]


def test_matplotlib_is_needed_for_the_page_only(tmp_path: Path) -> None:
    """Without it, records are still shown, and --html says at once what to install."""
    plain().write(tmp_path / "a.json")
    (tmp_path / "first" / "matplotlib").mkdir(parents=True)
    (tmp_path / "first" / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')"
    )
    path = f"{tmp_path / 'first'}:{ENVIRONMENT['PYTHONPATH']}"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = "from infer.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, "bench", *map(str, arguments)],
            env={**ENVIRONMENT, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    assert run(tmp_path / "a.json").returncode == 0
    # the candidate does not exist: what is missing is said before anything is measured or read
    done = run("absent.onnx", "--html", tmp_path / "page.html")
    assert done.returncode == 1
    assert "needs the package 'matplotlib', which is not installed" in done.stderr
    assert done.stderr.endswith('pip install "infer-onnx[bench]".\n')
    assert not (tmp_path / "page.html").exists()


UNSOUND: dict[str, Callable[[Record], Record]] = {
    "a latency of zero": lambda r: _each(r, mean_ms=Estimate(0.0, 0.0, 1.0)),
    "an interval beside its value": lambda r: _each(r, throughput=Estimate(1.0, 2.0, 3.0)),
    "no samples": lambda r: _each(r, samples=0),
    "no rounds": lambda r: _each(r, medians_ms=()),
    "quantiles cut off": lambda r: _each(r, quantiles_ms=(1.0, 2.0)),
    "a size below one": lambda r: _each(r, sizes={"batch": -1}),
    "a verdict nobody gives": lambda r: _each(r, verdict="<b>"),
    "a start that ends before it began": lambda r: replace(
        r, cold_starts=tuple(replace(s, loaded_ms=1.0) for s in r.cold_starts)
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_values_that_no_measurement_gives_are_refused(tmp_path: Path, case: str) -> None:
    """Ratios and logarithms are taken of a record's numbers, so it is refused when it is read."""
    rich().write(tmp_path / "a.json")
    assert read_record(tmp_path / "a.json") == rich()
    UNSOUND[case](rich()).write(tmp_path / "b.json")
    with pytest.raises(ArtifactError, match="holds values that no measurement gives"):
        read_record(tmp_path / "b.json")


# --- colours

CSS = files("infer.measure").joinpath("page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in CSS.split("@media")[:2])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_ground(theme: dict[str, str]) -> None:
    """Lines and bars have a contrast of at least 3, words one of 4.5 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    assert len(theme) == len(LIGHT) == 21
    for name, colour in theme.items():
        if name not in ("ground", "raised", "grid"):
            for ground in (theme["ground"], theme["raised"]):
                least = 3.0 if re.fullmatch(r"[cs]\d", name) else 4.5
                assert _contrast(colour, ground) >= least, (name, ground)


def _contrast(one: str, other: str) -> float:
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (_linear(one), _linear(other)))
    return (high + 0.05) / (low + 0.05)


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
