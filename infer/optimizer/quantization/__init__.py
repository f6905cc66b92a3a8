"""Cheaper arithmetic: weights, and for some kernels activations, in eight bits.

A file for each way. Which nodes of a graph stay in float is given by name, so that a search can decide it.
"""
