"""ONNX files: exported, run and timed in ONNX Runtime, quantized.

Imports: network, data, report.
"""
