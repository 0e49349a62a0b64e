"""Recovery of accuracy without labels or training: batch norms are recalibrated, layers re-estimated by least squares.

Imports: network, channels, data.
"""
