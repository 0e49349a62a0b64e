"""Papers that remove channels."""
