"""Benchmarks and the demo. Not shipped."""
