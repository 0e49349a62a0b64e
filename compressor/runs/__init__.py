"""The run of each command: open, compress, verify, publish.

Imports: network, channels, data, report, onnx, tasks, checkpoint, training, recovery, methods.
"""
