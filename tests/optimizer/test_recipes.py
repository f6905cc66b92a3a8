"""Which recipes are worth a try on which graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infer.optimizer.recipes import ON_CPU, static_products_recipe, unfit
from tests.test_passes import loaded
from tests.tiny import parse

RECIPES = {recipe.name: recipe for recipe in (*ON_CPU, static_products_recipe("products"))}


def net(convolutions: int, products: int, table_rows: int = 20) -> ir.Model:
    """So many convolutions, and then so many products, of 64 × 64 numbers each, and a table."""
    steps = [f"c{i + 1} = Conv(c{i}, k)" for i in range(convolutions)]
    steps += [f"m{i + 1} = MatMul(m{i}, w)" for i in range(products)]
    body = (
        f"c0 = Identity(x) {' '.join(steps[:convolutions])}"
        f" m0 = ReduceMean<keepdims = 0>(c{convolutions}, hw) {' '.join(steps[convolutions:])}"
        f" r = Gather(table, ids) y = Add(m{products}, r)"
    )
    model = parse(
        f"g (float[N, 64, 3, 3] x, int64[N] ids) => (float[N, 64] y) {{ {body} }}", opset=21, ir_version=10
    )
    rng = np.random.default_rng(0)
    weights = {"k": (64, 64, 1, 1), "w": (64, 64), "table": (table_rows, 64)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    for name, array in {**arrays, "hw": np.array([2, 3], np.int64)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return loaded(model)


@pytest.mark.parametrize(
    ("convolutions", "products", "static", "of_products"),
    [
        (8, 1, True, False),
        (4, 4, True, False),
        (2, 4, True, True),
        (1, 4, False, True),
        (0, 4, False, True),
    ],
)
def test_convolutions_decide_how_ranges_are_fixed(
    convolutions: int, products: int, static: bool, of_products: bool
) -> None:
    """Nets of convolutions stay in eight bits between them; where nearly all are products, as in
    transformers, only what goes into products is quantized; between lies what could be either."""
    model = net(convolutions, products)
    reasons = {name: unfit(RECIPES[name], model) for name in ("int8-static", "products", "int8-dynamic")}
    assert (reasons["int8-static"] is None) == static
    assert (reasons["products"] is None) == of_products
    assert reasons["int8-dynamic"] is None
    assert static or "nearly all are products" in str(reasons["int8-static"])
    assert of_products or "most are convolutions" in str(reasons["products"])


@pytest.mark.parametrize(("rows", "tried"), [(100, False), (2000, True)])
def test_tables_are_tried_where_they_are_most_of_a_model(rows: int, tried: bool) -> None:
    """As in recommenders; in others they are read the least."""
    reason = unfit(RECIPES["int8-tables"], net(1, 1, rows))
    assert (reason is None) == tried
    assert tried or "of the weights, and are read the least" in str(reason)


def test_the_order_in_which_recipes_are_tried() -> None:
    """Fixed ranges before those of each run, whole products before weights alone, what saves time before
    what saves room: the time may be over before the last."""
    names = [recipe.name for recipe in ON_CPU]
    assert names.index("int8-static") < names.index("int8-dynamic") < names.index("int8-weights")
    for_size = [recipe.for_size for recipe in ON_CPU]
    assert for_size == sorted(for_size)
