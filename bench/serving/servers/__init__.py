"""Peers' apps, each as its documentation writes one, around the same model."""
