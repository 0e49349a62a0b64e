"""The published methods, looked up by name, and the code that the families share.

Imports: network, channels, data, tasks, training, recovery.
"""
