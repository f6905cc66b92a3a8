"""Sessions behind HTTP: the wire format, the endpoints, what is refused, and the life of a server."""

from infer.errors import missing_package

try:
    import starlette  # noqa: F401 -- said once, for all files of this folder
except ImportError as _error:
    raise missing_package("starlette", "serve", _error) from _error
