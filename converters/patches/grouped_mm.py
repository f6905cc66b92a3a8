"""grouped-mm: the experts of a mixture, each with the rows that were sent to it."""

from __future__ import annotations

from typing import Any

from onnxscript.onnx_opset import opset18

op: Any = opset18  # its type variables know arrays, not the values of a graph in the making


def grouped_mm(input: Any, weight: Any, offs: Any) -> Any:
    """Rows sorted by expert, times the weights of their expert.

    Mixtures in `transformers` multiply with an operator of their own, shapes (rows, in),
    (experts, in, out) and (experts,): the end of each expert's rows. Without this there is no graph:
    "No ONNX function found for transformers.grouped_mm_fallback". Each row is multiplied once, as in
    the original.

        grouped_mm(x, w, ends)  ->  Concat(MatMul(x[:ends[0]], w[0]), MatMul(x[ends[0]:ends[1]], w[1]), …)
    """
    ends = op.Cast(offs, to=7)  # int64
    first = op.Constant(value_ints=[0])
    start = first
    parts = []
    for expert in range(weight.shape[0]):
        index = op.Constant(value_ints=[expert])
        end = op.Gather(ends, index)
        rows = op.Slice(input, start, end, first)
        parts.append(op.MatMul(rows, op.Squeeze(op.Gather(weight, index), first)))
        start = end
    return op.Concat(*parts, axis=0)
