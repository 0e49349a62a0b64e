"""The published methods, found by name, and what the families share.

Imports: network, channels, data, tasks, training, recovery.
"""
