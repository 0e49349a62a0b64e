"""One file a paper, named as the method is. A paper imports no other paper."""
