"""One file per paper, named after its method. Papers do not import each other."""
