"""Model families with real weights or real data: one file a family, with `build` and `task`.

`build` returns the model and its example inputs, as `infer convert bench/zoo/NAME.py:build`
takes it; `task` says what the model is for.
"""
