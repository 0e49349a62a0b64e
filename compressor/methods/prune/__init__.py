"""Pruning methods: the code they share, and one file per paper in `papers/`."""
