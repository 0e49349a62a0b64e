"""What a network is for: how it is called, its loss, its scores, and how the outputs of two networks are compared.

task.py      the interface: Task
meter.py     scores over images, with confidence intervals: Meter
likeness.py  how similar the outputs of two networks are
find.py      which task a run is for

One task, one file: classify.py, segment.py, restore.py, imitate.py.

Imports: network, data, report.
"""

from compressor.tasks.task import Task

__all__ = ["Task"]
