"""Drawings as inline SVG, in the colours of the page around them. The only file that imports matplotlib."""

from __future__ import annotations

import functools
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infer.errors import missing_package
from infer.wording import shown

try:
    import matplotlib
    from matplotlib.axes import Axes as Axes  # passed on
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except (ImportError, OSError) as _error:
    raise missing_package("matplotlib", "bench", _error) from _error

Draw = Callable[[Axes], None]
Dash = Literal["-"] | tuple[float, Sequence[float]]

WIDTH = 400
"""Of every drawing, in the pixels of a page that shows it as it is; letters are 12 of them high."""

_LETTERS = 44
"""No label of an axis is longer: it would not fit."""

# matplotlib wants a colour where the page has a variable: each stands for one, and for nothing else
INK, QUIET, GRID, GROUND = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_COLOURS = tuple(f"#0b0b{i:02x}" for i in range(8))
_STAGES = tuple(f"#0c0c{i:02x}" for i in range(6))
STAGES = len(_STAGES)
_VARIABLES = {
    INK: "currentColor",
    QUIET: "var(--quiet)",
    GRID: "var(--grid)",
    GROUND: "var(--ground)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(_COLOURS)},
    **{colour: f"var(--s{i})" for i, colour in enumerate(_STAGES)},
}

BEHIND: Any = {"facecolor": GROUND, "edgecolor": "none", "pad": 0.5}
"""Keeps lines out of words."""

# as many of each as share no divisor with the others, so that looks repeat late
_DASHES: tuple[Dash, ...] = (
    "-",
    (0, (5, 2)),
    (0, (2, 1)),
    (0, (6, 2, 1, 2)),
    (0, (1, 2)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# lines only: a hatch of dots is a path of many kilobytes
_HATCHES = ("", "///", "\\\\\\", "|||", "xxx")

# its type would name every setting there is
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infer",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.8,
    "patch.linewidth": 0.8,
}


@dataclass(frozen=True)
class Style:
    """How one candidate looks everywhere: told apart by colour, and without it."""

    colour: str
    dash: Dash
    marker: str
    hatch: str


def style(index: int) -> Style:
    """The look of the candidate at `index`."""
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
        _HATCHES[index % len(_HATCHES)],
    )


def stage(index: int) -> Style:
    """The look of the stage at `index` in a stacked bar."""
    return Style(_STAGES[index % STAGES], "-", "s", _HATCHES[index % len(_HATCHES)])


def svg(draw: Draw, label: str, prefix: str, height: float = 260) -> str:
    """What `draw` puts on axes, as an `svg` element with a label for those who do not see it.

    Its ids begin with `prefix`, so that several fit into one document. Text stays text.
    """
    element = _drawn(draw, prefix, WIDTH, height)
    element.attrib |= {"role": "img", "aria-label": shown(label)}
    return ET.tostring(element, encoding="unicode")


def swatch(look: Style, prefix: str, *, line: bool) -> str:
    """A piece of a line, or of a bar, for legends."""
    return _swatch(look, line).replace(_PREFIX, prefix)


_PREFIX = "@"
"""Stands for a prefix in what is kept: the same few looks come in every legend."""


@functools.cache
def _swatch(look: Style, line: bool) -> str:
    width = 30 if line else 16

    def draw(axes: Axes) -> None:
        _bare(axes, width, 12)
        if line:
            axes.add_line(Line2D([1, 29], [6, 6], color=look.colour, linestyle=look.dash))
            axes.add_line(Line2D([15], [6], color=look.colour, linestyle="none", marker=look.marker))
        else:
            box = Rectangle((1, 1), 14, 10, facecolor=look.colour, edgecolor=GROUND, hatch=look.hatch)
            axes.add_patch(box)

    element = _drawn(draw, _PREFIX, width, 12)
    element.attrib |= {"aria-hidden": "true", "class": "swatch", "width": f"{width}", "height": "12"}
    return ET.tostring(element, encoding="unicode")


def _bare(axes: Axes, width: float, height: float) -> None:
    axes.set_axis_off()
    axes.set_position((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)


def _drawn(draw: Draw, prefix: str, width: float, height: float) -> ET.Element:
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # widths of letters that its font lacks are guessed; the page has fonts of its own
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        # 72 units of an SVG are an inch
        figure = Figure((width / 72, height / 72), dpi=72, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        # labels of ticks are numbers of ours
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_text(shortened(shown(label.get_text()), _LETTERS))
        text = io.StringIO()
        # savefig would draw twice
        FigureCanvasSVG(figure).print_svg(text)  # type: ignore[no-untyped-call]
    return _themed(ET.fromstring(text.getvalue()), prefix)


def _themed(root: ET.Element, prefix: str) -> ET.Element:
    """Variables for colours, the page's font, ids of its own, and nothing that HTML does not want."""
    for element in root.iter():
        for child in list(element):
            name = _local(child.tag)
            if name in ("metadata", "style") or (name == "defs" and _only_style(child)):
                element.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        given = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in given.items():
            if name == "id":
                value = prefix + value
            elif name == "href":
                value = f"#{prefix}{value.removeprefix('#')}"
            elif name in ("clip-path", "fill", "stroke", "style"):
                value = re.sub(r"url\(#", f"url(#{prefix}", value)
                value = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES[found[0]], value)
                value = re.sub(r"font-family:[^;]*;?\s*", "", value)
            elif name == "d":
                value = " ".join(value.split())
            element.set(name, value)
        if "fill" in element.attrib:  # variables are for styles, not for attributes
            element.set("style", f"fill: {element.attrib.pop('fill')}")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return root


def _only_style(defs: ET.Element) -> bool:
    return [_local(child.tag) for child in defs] == ["style"]


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Make an axis logarithmic, from a little below `low` to a little above `high`, with round ticks."""
    widest = max(high / low, 1.25)
    middle = (low * high) ** 0.5
    low, high = middle / widest**0.56, middle * widest**0.56
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator(_round_numbers(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))


def ratio_axis(axes: Axes, low: float, high: float) -> None:
    """Make the horizontal axis one of ratios, logarithmic and with a tick at 1."""
    log_axis(axes, "x", min(low, 1.0), max(high, 1.0))
    least, most = axes.get_xlim()
    for ticks in _RATIOS:
        found = [tick for tick in ticks if least <= tick <= most]
        if len(found) >= 3:
            break
    axes.xaxis.set_major_locator(FixedLocator(found))


_RATIOS = (
    (0.001, 0.01, 0.1, 1, 10, 100, 1000),
    (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
    (0.25, 0.5, 0.7, 1, 1.4, 2, 4),
    (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6),
)


def zero_axis(axes: Axes, which: str, high: float) -> None:
    """Make an axis linear, from zero to a little above `high`."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, 1.1 * high)
    axis.set_major_locator(_even(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to seven numbers between the two, as round as there are."""
    decades = [10.0**i for i in range(-12, 16)]
    for parts in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = [part * decade for decade in decades for part in parts if low <= part * decade <= high]
        if len(found) >= 3:
            return found[:: (len(found) + 6) // 7]
    return [tick for tick in _even(5).tick_values(low, high) if low <= tick <= high]


def _even(most: int) -> MaxNLocator:
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def shortened(text: str, letters: int) -> str:
    """`text`, with its middle left out if it is longer than that: names differ at both ends."""
    letters = max(letters, 8)
    if len(text) <= letters:
        return text
    head = (letters - 1) // 2
    return f"{text[:head]}…{text[len(text) - (letters - 1 - head) :]}"


def brief(value: float) -> str:
    """A tick's label: 0.5, 200, 15k, 2M."""
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
