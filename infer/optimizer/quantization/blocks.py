"""Weights of a product in blocks: 32 of a column share a scale and a zero point.

Four bits lose too much if each weight is rounded for itself. Rounding a weight moves the product by its
input times the error; where inputs go together, weights that are not rounded yet can make up for that. So
they are rounded one row after another, and each row's error is taken off the rows to come, as far as
calibration's inputs say that these can (`compensated`).

A scale that holds a block's extremes is not the best for the rest of it. With four bits, narrower ones are
tried, each with the scale that fits its codes best by least squares; the nearest is taken.

Source: Frantar et al. 2023, "GPTQ", section 3; llama.cpp, `make_qkx2_quants` of its k-quants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infer.signature import Array

SIZE = 32
"""Weights of a block. With 64 and 128, kernels are hardly faster on AVX2, and four bits lose a quarter and
a half more."""

_DAMPING = 0.05
"""Of the mean squared input, added to each channel's: a few feeds do not tell all that goes together."""


_NARROWER = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
"""Parts of the range between a block's extremes that are tried. Beyond, normal weights gain nothing."""

_FINE = 8
"""With so many bits, rounding loses less than cutting off extremes does."""


@dataclass(frozen=True)
class Blocks:
    """A matrix of shape (rows, columns) as codes: weight ≈ (code - zero) · scale.

    Attributes:
        codes: uint8, shape (columns, blocks, SIZE); behind the last row, codes of 0.0.
        scale: float32, shape (columns, blocks).
        zero: uint8, shape (columns, blocks).
    """

    bits: int
    rows: int
    codes: Array
    scale: Array
    zero: Array

    def matrix(self) -> Array:
        """The weights that the codes stand for, float32."""
        steps = self.codes.astype(np.float32) - self.zero[..., None]
        return (steps * self.scale[..., None]).reshape(len(self.codes), -1)[:, : self.rows].T


def rounded(matrix: Array, bits: int) -> Blocks:
    """Each weight to its nearest code; 0 has a code."""
    rows, columns = matrix.shape
    padded = np.zeros((columns, -(-rows // SIZE), SIZE), np.float32)
    padded.reshape(columns, -1)[:, :rows] = matrix.T
    scale, zero = _range(padded, bits, np.ones(SIZE, np.float32))
    codes = _codes(padded, scale[..., None], zero[..., None], bits)
    return Blocks(bits, rows, codes.astype(np.uint8), scale, zero.astype(np.uint8))


def compensated(matrix: Array, bits: int, factor: Array) -> Blocks:
    """As near in its products as in itself: `factor` is `factor_of` the inputs' second moments."""
    rows, columns = matrix.shape
    count = -(-rows // SIZE)
    left = np.array(matrix, np.float32)
    importance = np.diag(factor) ** -2.0  # of a row's error, when the rows to come make up for it
    codes = np.zeros((count, SIZE, columns), np.uint8)
    scales, zeros = np.ones((count, columns), np.float32), np.zeros((count, columns), np.uint8)
    for block in range(count):
        start, stop = block * SIZE, min(rows, (block + 1) * SIZE)
        scale, zero = _range(left[start:stop].T, bits, importance[start:stop])
        errors = np.zeros((stop - start, columns), np.float32)
        for row in range(start, stop):
            code = _codes(left[row], scale, zero, bits)
            errors[row - start] = (left[row] - (code - zero) * scale) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
            codes[block, row - start] = code
        left[stop:] -= factor[start:stop, stop:].T @ errors
        codes[block, stop - start :] = zero
        scales[block], zeros[block] = scale, zero
    return Blocks(bits, rows, np.ascontiguousarray(codes.transpose(2, 0, 1)), scales.T, zeros.T)


def factor_of(moments: Array) -> Array:
    """The upper triangle U of which UᵀU is the inverse of the damped second moments of inputs XᵀX."""
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += max(_DAMPING * float(np.diag(damped).mean()), 1e-8)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T, np.float32)


def packed(codes: Array, bits: int) -> Array:
    """Codes of the last axis as bytes, the first in the lowest bits; four bits beyond the last are 0."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4)


def _range(blocks: Array, bits: int, importance: Array) -> tuple[Array, Array]:
    """Scale and zero point, float32, for each row of the last axis; 0 has a code. `importance` is of the
    squared errors along that axis."""
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    widest = np.asarray((high - low) / (2**bits - 1), np.float32)
    widest = np.where(widest > 0, widest, np.float32(1))
    zero = np.rint(-low / widest)
    if bits >= _FINE:
        return widest, zero
    scale, least = widest, np.full(widest.shape, np.inf, np.float32)
    for part in _NARROWER:
        tried = part * widest
        steps = _codes(blocks, tried[..., None], zero[..., None], bits) - zero[..., None]
        fitted = (importance * blocks * steps).sum(-1) / np.maximum((importance * steps**2).sum(-1), 1e-30)
        tried = np.where(fitted > 0, fitted, tried).astype(np.float32)
        steps = _codes(blocks, tried[..., None], zero[..., None], bits) - zero[..., None]
        error = (importance * (blocks - steps * tried[..., None]) ** 2).sum(-1)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    return scale, zero


def _codes(weights: Array, scale: Array, zero: Array, bits: int) -> Array:
    return np.asarray(np.clip(np.rint(weights / scale) + zero, 0, 2**bits - 1))
