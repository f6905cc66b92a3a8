"""How many floating-point operations a node takes: a multiplication and an addition are two.

Counted is what the operator's definition asks for, with the shapes of the node's inputs and outputs
alone. Integer products count like others. Source: onnx.ai/onnx/operators, and ONNX Runtime's
docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]
"""Of a node's inputs or outputs; None for an optional one that is not given."""


def operations(op_type: str, inputs: Shapes, outputs: Shapes, equation: str = "") -> float | None:
    """Of one node that ran; None if that is not known. `equation` is an Einsum's."""
    if op_type in _PER_ELEMENT:
        shapes = [shape for shape in (*inputs[:1], *outputs[:1]) if shape is not None]
        return float(_PER_ELEMENT[op_type] * max(map(math.prod, shapes), default=0))
    if op_type == "Einsum":
        return _einsum(equation, [shape for shape in inputs if shape is not None])
    count = _PRODUCTS.get(op_type)
    try:
        return None if count is None else float(count(inputs, outputs))
    except (IndexError, TypeError):  # an input that it needs is packed away, or of another rank
        return None


_Count = Callable[[Shapes, Shapes], float]


def _size(shape: Shape | None) -> int:
    if shape is None:
        raise TypeError("a tensor that is needed is not given")
    return math.prod(shape)


def _matmul(left: int) -> _Count:
    """A product of matrices, of which the first is the input `left`, transposed or not."""

    def count(inputs: Shapes, outputs: Shapes) -> float:
        a, y = inputs[left], outputs[0]
        assert a is not None
        assert y is not None
        if not _size(a) or not _size(y):
            return 0.0
        if len(a) < 2 or len(y) < 2:  # a vector is as long as what is summed
            return 2.0 * _size(y) * a[-1]
        # rows of `a` that are not rows of the product are summed over
        rows = y[-2] if y[-2] in a[-2:] else 1
        return 2.0 * _size(y) * (a[-1] * a[-2] // rows)

    return count


def _product_of_rows(left: int) -> _Count:
    """A product of matrices, of which the first is never transposed."""

    def count(inputs: Shapes, outputs: Shapes) -> float:
        a = inputs[left]
        assert a is not None
        return 2.0 * _size(outputs[0]) * a[-1]

    return count


def _conv(weight: int) -> _Count:
    """Weights are (channels out, channels in ÷ groups, …kernel), and each output is a sum over all but the
    first dim of them."""

    def count(inputs: Shapes, outputs: Shapes) -> float:
        w = inputs[weight]
        assert w is not None
        return 2.0 * _size(outputs[0]) * math.prod(w[1:])

    return count


def _conv_transpose(inputs: Shapes, outputs: Shapes) -> float:
    """Weights are (channels in, channels out ÷ groups, …kernel), and each input goes to all but their first
    dim."""
    w = inputs[1]
    assert w is not None
    return 2.0 * _size(inputs[0]) * math.prod(w[1:])


def _recurrent(inputs: Shapes, outputs: Shapes) -> float:
    """In every step every row meets all weights: (directions, gates · hidden, input) and (…, hidden)."""
    x = inputs[0]
    assert x is not None
    return 2.0 * x[0] * x[1] * (_size(inputs[1]) + _size(inputs[2]))


def _attention(inputs: Shapes, outputs: Shapes) -> float:
    """Two products: of queries and keys, and of what they give and values.

    Queries are (batch, length, heads · size) or (batch, heads, length, size). ONNX Runtime's own operator
    of that name multiplies with the weights of all three first.
    """
    q, k, y = inputs[0], inputs[1] if len(inputs) > 1 else None, outputs[0]
    assert q is not None
    assert y is not None
    # keys of earlier calls come out again, before the new ones
    present = outputs[1] if len(outputs) > 1 else None
    if k is not None and len(k) == 2:
        length = q[1] if present is None else present[-2]
        return 2.0 * _size(q) * k[1] + 4.0 * _size(y) * length
    if present is not None:
        length = present[-2]
    elif k is not None and len(k) in (3, 4):
        length = k[-2]
    else:
        raise TypeError("queries, keys and values are packed")
    queries = q if k is not None else y
    return 2.0 * (_size(queries) + _size(y)) * length


def _einsum(equation: str, shapes: Sequence[Shape]) -> float | None:
    """Operand after operand, as ONNX Runtime does it; a label no longer needed is summed over."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        return None
    labelled = [_labels(term, shape) for term, shape in zip(terms, shapes, strict=True)]
    if any(labels is None for labels in labelled):
        return None
    operands = [labels for labels in labelled if labels is not None]
    sizes: dict[str, int] = {}
    for labels in operands:
        for label, size in labels:
            sizes[label] = max(size, sizes.get(label, 1))  # those of an ellipsis may be broadcast
    if arrow:
        kept = {label for label in sizes if label in right or label.isdigit()}
    else:
        kept = {label for label in sizes if left.count(label) == 1 or label.isdigit()}
    current = {label for label, _ in operands[0]}
    if len(operands) == 1:
        return float(math.prod(sizes[label] for label in current)) if current - kept else 0.0
    total = 0.0
    for i, labels in enumerate(operands[1:], start=2):
        current |= {label for label, _ in labels}
        needed = kept.union(*({label for label, _ in later} for later in operands[i:]))
        each = 2.0 if current - needed else 1.0
        total += each * math.prod(sizes[label] for label in current)
        current &= needed
    return total


def _labels(term: str, shape: Shape) -> list[tuple[str, int]] | None:
    """Each dim's label and size; dims of an ellipsis are called "0", "1", … from the last one."""
    before, dots, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return None
    names = [*before, *map(str, reversed(range(hidden))), *after]
    return list(zip(names, shape, strict=True))


_PRODUCTS: dict[str, _Count] = {
    "MatMul": _product_of_rows(0),
    "FusedMatMul": _matmul(0),
    "Gemm": _matmul(0),
    "FusedGemm": _matmul(0),
    "MatMulInteger": _product_of_rows(0),
    "MatMulIntegerToFloat": _product_of_rows(0),
    "DynamicQuantizeMatMul": _product_of_rows(0),
    "QLinearMatMul": _product_of_rows(0),
    "QGemm": _matmul(0),
    "MatMulNBits": _product_of_rows(0),
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
}

_NONE = """
Cast CastLike Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Dropout
Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop MemcpyFromHost MemcpyToHost
NonZero OneHot Optional OptionalGetElement OptionalHasElement Pad Range ReorderInput ReorderOutput
Reshape ReverseSequence Scan Scatter ScatterElements ScatterND SequenceAt SequenceConstruct
SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Size Slice SpaceToDepth Split
SplitToSequence Squeeze TensorScatter Tile Transpose Trilu Unique Unsqueeze
"""
_ONE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitShift BitwiseAnd
BitwiseNot BitwiseOr BitwiseXor Ceil Clip Cos Cosh CumSum Div Equal Erf Exp Floor GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GridSample Hardmax IsInf IsNaN LeakyRelu Less LessOrEqual Log
Max MaxPool MaxUnpool Mean Min Mod Mul Neg Not Or PRelu Pow QLinearAdd QLinearMul Reciprocal
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Resize Round Sign Sin Sinh Sqrt Sub Sum Tan
Tanh ThresholdedRelu TopK Upsample Where Xor
"""
_TWO = """
BatchNormalization Celu DequantizeLinear Elu GlobalLpPool LpPool QuantizeLinear ReduceL1 ReduceL2
ReduceLogSum ReduceSumSquare Selu Shrink Softsign
"""
_THREE = "HardSigmoid LpNormalization ReduceLogSumExp RotaryEmbedding Softplus"
_FOUR = "DynamicQuantizeLinear HardSwish RMSNormalization Sigmoid SimplifiedLayerNormalization"
_FIVE = "LogSoftmax Mish QuickGelu Softmax Swish"
_SEVEN = "GroupNormalization InstanceNormalization LayerNormalization"
_EIGHT = "BiasGelu FastGelu Gelu SkipLayerNormalization"

_PER_ELEMENT: dict[str, int] = {
    name: count
    for count, names in (
        (0, _NONE), (1, _ONE), (2, _TWO), (3, _THREE), (4, _FOUR), (5, _FIVE), (7, _SEVEN), (8, _EIGHT),
    )
    for name in names.split()
}  # fmt: skip
"""Operations for each element of the first input, or of the first output if that has more."""
