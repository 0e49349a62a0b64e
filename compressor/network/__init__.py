"""How a network is called, copied and its cost counted, and the modules that may replace a layer.

Imports: nothing.
"""
