"""packed-states: recurrent layers that are fed packed sequences, of which only the last state is used."""

from __future__ import annotations

from typing import Any

from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from converters.patches.replace import TorchPatch


def _with_outputs_used(original: Any, self: Any, input: PackedSequence, hx: Any = None) -> Any:
    packed, states = original(self, input, hx)
    padded, _ = pad_packed_sequence(packed)
    nothing = padded[:0].sum()  # of no elements: exactly zero
    if isinstance(states, tuple):
        return packed, tuple(state + nothing for state in states)
    return packed, states + nothing


def _is_packed(self: Any, input: Any, hx: Any = None) -> bool:
    return isinstance(input, PackedSequence)


PACKED_STATES = TorchPatch(
    "packed-states",
    (
        "torch.nn.modules.rnn:RNN.forward",
        "torch.nn.modules.rnn:LSTM.forward",
        "torch.nn.modules.rnn:GRU.forward",
    ),
    _with_outputs_used,
    _is_packed,
)
"""Classifiers of sequences pack them by their lengths and look at the last state alone.

Without it, the TorchScript exporter, the only one that takes packed sequences, fails where it looks for
who uses the outputs of the layer, and finds nobody ("vector::_M_range_check").
"""
