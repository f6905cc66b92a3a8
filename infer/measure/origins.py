"""From the nodes that ONNX Runtime runs back to the modules of the PyTorch original.

Our converter notes each node's module in the graph. ONNX Runtime fuses nodes and lays them out anew, and
what it makes has no note: it is traced through its name, through the values that it gives, or through
those that it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from infer.graphnodes import GraphNodes, Node

INSERTED = "(inserted by ONNX Runtime)"
ITSELF = "(the model itself)"
"""Nodes that the outermost module asked for, and those of which the converter noted no module."""
UNKNOWN = "(unknown)"

_ALWAYS_INSERTED = ("ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost")
_OFTEN_INSERTED = ("Cast", "Transpose")

# a node laid out in channel blocks is called after the value that it gave before
_BLOCKED = re.compile(r"(.+)_nchwc(?:_token_\d+|_\d+)?")

# an operator with others fused into it → the one that takes the time
_HEAVIEST = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
_MOST_STEPS_BACK = 8


class Origins:
    """Modules of the nodes that were made of the graph `original`."""

    def __init__(self, original: GraphNodes) -> None:
        self._by_name = {node.name: node for node in original.nodes if node.name}
        self._maker = {name: node for node in original.nodes for name in node.outputs if name}
        self._user: dict[str, Node] = {}
        for node in original.nodes:
            for name in node.inputs:
                if name in original.constants:
                    self._user.setdefault(name, node)

    @property
    def known(self) -> bool:
        """Whether any module was noted."""
        return any(node.module for node in (*self._by_name.values(), *self._maker.values()))

    def module(self, node: Node) -> str:
        """The path of the module that asked for `node`, or one of the names above."""
        if node.op_type in _ALWAYS_INSERTED:
            return INSERTED
        origin = self._by_name.get(node.name) or self._giver(node)
        if origin is None and node.op_type in _OFTEN_INSERTED:
            return INSERTED
        origin = origin or self._taker(node)
        return UNKNOWN if origin is None else origin.module or ITSELF

    def _giver(self, node: Node) -> Node | None:
        blocked = _BLOCKED.fullmatch(node.name)
        for name in (*node.outputs, *(blocked.groups() if blocked else ())):
            if name in self._maker:
                wanted = _HEAVIEST.get(node.op_type, node.op_type)
                last = self._maker[name]
                return next((n for n in self._back(last) if n.op_type == wanted), last)
        return None

    def _taker(self, node: Node) -> Node | None:
        """Of weights the node that uses them, of other values the one that makes them."""
        for found in (self._user, self._maker):
            for name in node.inputs:
                if name in found:
                    return found[name]
        return None

    def _back(self, node: Node) -> Iterator[Node]:
        """`node`, and the nodes nearest before it: those that could be fused with it."""
        waiting = [node]
        for _ in range(_MOST_STEPS_BACK):
            if not waiting:
                return
            node = waiting.pop(0)
            yield node
            waiting += [self._maker[name] for name in node.inputs if name in self._maker]
