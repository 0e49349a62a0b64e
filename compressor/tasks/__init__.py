"""The task of a network: its loss and its metrics.

Imports: network, data, report.
"""
