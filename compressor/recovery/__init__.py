"""What makes up for a cut without labels or training: batch-norm statistics measured anew, layers refitted.

Imports: network, channels, data.
"""
