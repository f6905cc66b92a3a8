"""A plan: how an artifact is going to be run, as plain data that can be printed and compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from infer.options import SHRINK_ABOVE_BYTES


@dataclass(frozen=True)
class Plan:
    """Made by `infer.planner.make_plan`; a backend does what it says and nothing else."""

    variant: str
    graph: str
    precision: str
    backend: str
    device: str
    num_threads: int
    spinning: bool
    compute_dtype: str | None = None
    """What the backend computes in where the graph has float32; None: float32."""
    graph_optimization: str = "all"
    prepacking: bool = True
    huge_pages: bool = False
    """Whether memory is put into huge pages; see `infer.huge_pages`."""
    prepared: str | None = None
    """The file that is loaded in the graph's place: the same, as the backend optimized it before."""
    compiled: str | None = None
    """The sha256 of the graph as the backend compiled it before, taken if the user's cache still has it."""
    streams: int = 1
    """How many runs of a batcher go on at once; they share the threads."""
    shared_threads: bool = False
    """Whether the threads are those that all sessions of this process share."""
    arena: bool = True
    shrink_above_bytes: int = SHRINK_ABOVE_BYTES
    rows_from: int = 1
    """The fewest rows of feeds that it is for."""
    larger: Plan | None = None
    """How feeds of more rows are run, if otherwise: from its `rows_from` on."""
    reasons: tuple[str, ...] = ()
    """Why, one sentence each, for `--explain`."""

    def at(self, rows: int) -> Plan:
        """The one for feeds of so many rows."""
        return self.larger if self.larger is not None and rows >= self.larger.rows_from else self

    @property
    def parts(self) -> tuple[Plan, ...]:
        """This one, and the one for more rows if there is one."""
        return (self,) if self.larger is None else (self, self.larger)

    @property
    def loaded(self) -> str:
        """The file of the graph that is loaded."""
        return self.prepared or self.graph

    @property
    def cores(self) -> int:
        """The most that its runs keep busy."""
        return max(max(part.num_threads, part.streams) for part in self.parts)

    @property
    def gathers(self) -> bool:
        """Whether the session's memory is put into huge pages: it is one, whichever part asks for it."""
        return any(part.huge_pages for part in self.parts)

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of those that answer, once each."""
        return tuple(dict.fromkeys(part.variant for part in self.parts))

    def to_dict(self) -> dict[str, object]:
        larger = self.larger.to_dict() if self.larger else None
        return {**asdict(self), "larger": larger, "reasons": list(self.reasons)}

    @property
    def summary(self) -> str:
        """In a few words."""
        dtype = f" in {self.compute_dtype}" if self.compute_dtype else ""
        here = f"{self.variant} on {self.backend}{dtype}, {self.device}, threads {self.num_threads}"
        return f"{here}; from {self.larger.rows_from} rows {self.larger.summary}" if self.larger else here

    @property
    def _arena(self) -> str:
        if not self.arena:
            return "off"
        return f"on, given back after runs with more than {self.shrink_above_bytes:,} bytes of feeds"

    def __str__(self) -> str:
        rows = [
            ("variant", f"{self.variant} ({self.precision})"),
            ("graph", f"{self.graph}, prepared as {self.prepared}" if self.prepared else self.graph),
            ("backend", f"{self.backend}, in {self.compute_dtype}" if self.compute_dtype else self.backend),
            ("device", self.device),
            ("threads", f"{self.num_threads}, shared" if self.shared_threads else str(self.num_threads)),
            ("spinning", "on" if self.spinning else "off"),
            ("streams", f"{self.streams} run{'s' * (self.streams > 1)} at once, of many callers"),
            ("optimize", self.graph_optimization),
            ("prepacking", "on" if self.prepacking else "off"),
            ("huge pages", "on" if self.huge_pages else "off"),
            ("arena", self._arena),
        ]
        if self.larger:
            rows.append((f"from {self.larger.rows_from} rows", self.larger.summary))
        lines = [f"{name:<12}{value}" for name, value in rows]
        return "\n".join(lines + [f"  - {reason}" for reason in self.reasons])
