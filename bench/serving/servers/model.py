"""The model that all peers serve: texts to vectors, by tokenizers and ONNX Runtime alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

_TYPES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Model:
    """Of the graph $GRAPH and the tokenizer $TOKENIZER, on $THREADS threads, which spin unless $SPINNING is
    0."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(os.environ["TOKENIZER"])
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(256)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ.get("SPINNING", "1"))
        self._session = onnxruntime.InferenceSession(os.environ["GRAPH"], options)

    def __call__(self, texts: Sequence[str]) -> Any:
        """float32, shape = (texts, size)."""
        encodings = self._tokenizer.encode_batch(list(texts))
        feeds = {
            each.name: np.array([getattr(encoding, _TYPES[each.name]) for encoding in encodings], np.int64)
            for each in self._session.get_inputs()
        }
        return self._session.run(None, feeds)[0]
