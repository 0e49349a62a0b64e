"""ONNX files: export, inference and latency in ONNX Runtime, quantization.

Imports: network, data, report.
"""
