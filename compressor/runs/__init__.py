"""A whole run of each command: open, compress, prove, publish.

Imports: network, channels, data, report, onnx, tasks, checkpoint, training, recovery, methods.
"""
