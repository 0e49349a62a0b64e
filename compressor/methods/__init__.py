"""The papers: one paper, one file; the file's name is the method's name. See `method.py` for the contract."""
