"""What calibration observes: ranges, feeds that are refused, and biases corrected by means."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from infer.errors import InputError
from infer.optimizer.quantization import static
from infer.optimizer.quantization.calibration import METHODS, ActivationRange, Observed, observe
from infer.signature import Array
from tests.test_passes import answers, loaded
from tests.test_static_quantization import convolutions, pictures, told
from tests.tiny import parse


def test_ranges_hold_zero_and_clip_what_is_rare() -> None:
    """By extremes the range is the extremes'; otherwise it is smaller where values far out are rare, and by
    squared error its steps are closest to the values in the mean."""
    model = convolutions()
    values = np.random.default_rng(0).standard_t(3, (4, 3, 40, 40)).astype(np.float32)
    feeds = [{"x": each[None]} for each in values]
    seen = observe(model, ["x"], feeds)["x"]
    found = {method: seen.range(method) for method in METHODS}
    whole = found.pop("extremes")
    assert (whole.low, whole.high) == (values.min(), values.max())
    for some in found.values():
        assert whole.low < some.low < 0 < some.high < whole.high

    def error(within: ActivationRange) -> float:
        scale, zero = within.steps()
        steps = np.clip(np.rint(values / scale) + zero, 0, 255)
        return float(np.mean(((steps - zero) * scale - values) ** 2))

    assert min(found, key=lambda method: error(found[method])) == "squared error"
    assert error(found["squared error"]) < error(whole)
    assert ActivationRange(0.0, 2.55).steps() == (pytest.approx(0.01), 0)
    assert ActivationRange(0.0, 2.55, signed=True).steps() == ActivationRange(0.0, 2.55).steps()
    scale, zero = ActivationRange(-2.54, 1.0, signed=True).steps()
    assert (scale, zero, zero.dtype) == (pytest.approx(0.02), 0, np.int8)


def test_nan_in_calibration_is_refused() -> None:
    """With the number of the input and the tensor."""
    feeds = pictures(3, 0)
    feeds[1]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="calibration input 2 gives NaN or infinity at"):
        observe(convolutions(), ["c1"], feeds)


def test_percentiles_are_numpys() -> None:
    """Of 0 to 99,999 and as far below, one in ten thousand at each end is clipped: by linear interpolation
    the 99.99th percentile of n values lies at (n - 1) · 0.9999. Where nothing is negative, 0 is the end."""
    both = np.arange(-99_999, 100_000, dtype=np.float64)
    found = Observed(both[0], both[-1], both, np.zeros(0)).range("percentile")
    assert (found.low, found.high) == (pytest.approx(-99_979.0002), pytest.approx(99_979.0002))
    sample = np.abs(np.random.default_rng(3).standard_normal(50_000))
    found = Observed(0.0, float(sample.max()), sample, np.zeros(0)).range("percentile")
    assert found.low == 0.0
    assert found.high == pytest.approx(np.percentile(sample, 99.99))


def divergence_at(counts: Array, kept: int) -> float:
    """Migacz 2017, slide "KL divergence", bin by bin: P has the clipped counts, with all that is beyond in
    the last; Q spreads what each of 128 levels holds over its bins that are not empty."""
    p = [float(each) for each in counts[:kept]]
    q = [0.0] * kept
    for level in range(128):
        bins = [i for i in range(kept) if i * 128 // kept == level and counts[i] > 0]
        total = sum(float(counts[i]) for i in bins)
        for i in bins:
            q[i] = total / len(bins)
    p[-1] += float(counts[kept:].sum())
    all_p, all_q = sum(p), sum(q)
    return sum(
        a / all_p * float(np.log((a / all_p) / max(b / all_q, 1e-7)))
        for a, b in zip(p, q, strict=True)
        if a
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_takes_the_threshold_of_least_divergence(seed: int) -> None:
    """Of all thresholds that are tried, by a computation of the test's own; values far out are clipped."""
    rng = np.random.default_rng(seed)
    sample = np.concatenate([rng.laplace(size=20_000), rng.uniform(30, 40, 3)])
    found = Observed(float(sample.min()), float(sample.max()), sample, np.zeros(0)).range("entropy")
    largest = float(np.abs(sample).max())
    counts, edges = np.histogram(np.abs(sample), 2048, (0.0, largest))
    tried = {float(edges[kept]): divergence_at(counts, kept) for kept in range(128, 2049, 16)}
    best = min(tried, key=tried.__getitem__)
    assert 0 < best < 0.5 * largest
    assert found.high == pytest.approx(best)
    assert found.low == pytest.approx(max(-best, float(sample.min())))


def test_calibration_feeds_may_differ_in_length(tmp_path: Path) -> None:
    """A convolution over time and a product behind it: what lies along the product's second axis are no
    channels, and no mean is made of them."""
    text = """g (float[N, 4, T] x) => (float[N, T, 6] y) {
        c = Conv<pads = [1, 1]>(x, w, b)
        t = Transpose<perm = [0, 2, 1]>(c)
        y = MatMul(t, v)
    }"""
    proto = parse(text, opset=20, ir_version=9)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 4, 3), "b": (8,), "v": (8, 6)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    before, after = loaded(proto), loaded(proto)
    feeds = [{"x": rng.standard_normal((1, 4, length)).astype(np.float32)} for length in (7, 9, 11)]
    seen = observe(after, ["x", "t"], feeds)
    assert (len(seen["x"].means), len(seen["t"].means)) == (4, 0)
    seen = observe(after, ["x", "c", "t", "y"], feeds)
    static.quantize_statically(after, partial(told, seen), "extremes", pair_bounded=True)
    expected = answers(before, tmp_path / "a.onnx", feeds[1])["y"].ravel()
    found = answers(after, tmp_path / "b.onnx", feeds[1])["y"].ravel()
    assert expected @ found / np.linalg.norm(expected) / np.linalg.norm(found) > 0.999


def test_what_rounding_takes_in_the_mean_is_given_back(tmp_path: Path) -> None:
    """With inputs that are all positive, rounded weights shift every output; with the bias corrected, the
    mean of each output over the calibration inputs is nearer to the original's: with groups and without,
    where there was no bias, and where the bias is added behind a product of matrices."""
    of_pictures = "g (float[N, 8, 6, 6] x) => (float[N, 16, 6, 6] y)"
    of_texts = "g (float[N, 6, 6, 8] x) => (float[N, 6, 6, 16] y)"
    for groups, text in (
        (1, f"{of_pictures} {{ y = Conv<group = 1>(x, w, b) }}"),
        (4, f"{of_pictures} {{ y = Conv<group = 4>(x, w, b) }}"),
        (1, f"{of_pictures} {{ y = Conv(x, w) }}"),
        (0, f"{of_texts} {{ product = MatMul(x, w) y = Add(b, product) }}"),
    ):
        proto = parse(text, opset=20, ir_version=9)
        rng = np.random.default_rng(3)
        # one large weight a channel makes the steps wide
        w = rng.standard_normal((16, 8 // (groups or 1), 1, 1)).astype(np.float32) * 0.02
        w[:, 0] = 3.0
        w = w if groups else w[:, :, 0, 0].T
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(16, np.float32), "b"))
        shape = (2, 8, 6, 6) if groups else (2, 6, 6, 8)
        feeds = [{"x": rng.uniform(0.5, 1.5, shape).astype(np.float32)} for _ in range(8)]
        off = []
        for corrected in (True, False):
            before, after = loaded(proto), loaded(proto)

            seen = observe(after, ["x", "y"] if groups else ["x", "product"], feeds)
            if not corrected:
                nothing = np.zeros(0)
                seen = {
                    name: replace(each, means=nothing, feature_means=nothing) for name, each in seen.items()
                }
            static.quantize_statically(after, partial(told, seen), "extremes", pair_bounded=True)
            difference = [
                answers(after, tmp_path / "b.onnx", each)["y"]
                - answers(before, tmp_path / "a.onnx", each)["y"]
                for each in feeds
            ]
            off.append(np.abs(np.mean(difference, axis=(0, 1, 3, 4) if groups else (0, 1, 2, 3))).max())
        assert off[0] < 0.2 * off[1]
