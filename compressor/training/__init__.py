"""The contract between a paper and the training loop, what was asked, how to train, and the loop itself.

Imports: network, channels, data, report, tasks.
"""
