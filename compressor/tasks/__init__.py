"""What a network is for: its targets, its loss, and how good its answers are.

Imports: network, data, report.
"""
