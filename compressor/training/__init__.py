"""The interface between a method and the training loop, the compression target, the training recipe, and the loop itself.

Imports: network, channels, data, report, tasks.
"""
