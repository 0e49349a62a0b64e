"""How any network is called, copied and counted, and what may stand in place of a layer.

Imports: nothing.
"""
