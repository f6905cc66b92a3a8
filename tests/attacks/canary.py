"""Files that would leave a mark on the disk if anything ran the code inside of them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class _Bomb:
    """Pickles as a call of `Path.touch` on the mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._mark,))


def code(mark: Path) -> str:
    """An expression that leaves the mark, wherever it is evaluated."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def plain_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": _Bomb(mark)}))


def torch_zip(path: Path, mark: Path) -> None:
    torch.save({"weight": _Bomb(mark)}, path)


def torch_legacy(path: Path, mark: Path) -> None:
    torch.save({"weight": _Bomb(mark)}, path, _use_new_zipfile_serialization=False)


def object_npy(path: Path, mark: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([_Bomb(mark)], dtype=object), allow_pickle=True)


def object_npz(path: Path, mark: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.array([_Bomb(mark)], dtype=object))


class Doubled(torch.nn.Module):
    """Something small to export."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x]) * 2


def program(path: Path) -> None:
    """A harmless .pt2 file with a symbolic size."""
    size = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(Doubled(), (torch.randn(3, 4),), dynamic_shapes=({0: size},))
    torch.export.save(exported, path)


def rewrite(
    path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None
) -> None:
    """Pass every member of a zip file through `change`, and add `extra` ones below its top folder."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
        for name, data in (extra or {}).items():
            archive.writestr(f"{top}/{name}", data)


def pickled_inputs(path: Path, mark: Path) -> None:
    """A .pt2 whose example inputs are a pickle that runs code."""
    program(path)
    bomb = io.BytesIO()
    torch.save(((_Bomb(mark),), {}), bomb)
    rewrite(path, lambda name, data: bomb.getvalue() if name.endswith(".pt") else data)


def pickled_weights(path: Path, mark: Path) -> None:
    """A .pt2 whose weights say that they are pickled."""
    program(path)
    bomb = io.BytesIO()
    torch.save(_Bomb(mark), bomb)
    config = {"config": {"w": {"path_name": "weight_0", "is_param": True, "use_pickle": True,
                               "tensor_meta": None}}}  # fmt: skip
    rewrite(
        path,
        lambda name, data: json.dumps(config).encode() if "weights_config" in name else data,
        {"data/weights/weight_0": bomb.getvalue()},
    )


def sympy_expression(path: Path, mark: Path) -> None:
    """A .pt2 in which a size is Python."""
    program(path)

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model.json"):
            return data
        text = data.decode()
        start = text.index('"expr_str": ') + len('"expr_str": ')
        end = text.index('"', start + 1) + 1
        return (text[:start] + json.dumps(code(mark)) + text[end:]).encode()

    rewrite(path, change)


def argument_name(path: Path, mark: Path) -> None:
    """A .pt2 in which the name of an input is Python, for where names become source."""
    program(path)
    evil = json.dumps(f"x={code(mark)}")
    rewrite(
        path, lambda name, data: data.replace(b'"x"', evil.encode()) if name.endswith(".json") else data
    )


def guard(path: Path, mark: Path) -> None:
    """A .pt2 whose guards are Python."""
    program(path)

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model.json"):
            return data
        document = json.loads(data)
        document["guards_code"] = [code(mark)]
        return json.dumps(document).encode()

    rewrite(path, change)


def compiled(path: Path, mark: Path) -> None:
    """A .pt2 that brings a compiled library."""
    program(path)
    rewrite(path, lambda name, data: data, {"data/aotinductor/model/model.so": b"\x7fELF"})


def torchscript(path: Path, mark: Path) -> None:
    """A TorchScript archive with its data replaced by a Python pickle that runs code."""
    with torch.no_grad():
        torch.jit.save(torch.jit.script(Doubled()), path)
    rewrite(path, lambda name, data: pickle.dumps(_Bomb(mark), 2) if name.endswith("data.pkl") else data)


PICKLES = {
    ".pt": torch_zip,
    ".pth": torch_legacy,
    ".bin": torch_zip,
    ".pkl": plain_pickle,
    ".ckpt": torch_legacy,
    ".npy": object_npy,
    ".npz": object_npz,
    ".safetensors": plain_pickle,
}
"""Suffix → the maker of a file with a canary."""

PROGRAMS = {
    "pickled inputs": pickled_inputs,
    "pickled weights": pickled_weights,
    "sympy expression": sympy_expression,
    "argument name": argument_name,
    "guard": guard,
    "compiled library": compiled,
}
"""Ways to hide code in a .pt2 file."""
