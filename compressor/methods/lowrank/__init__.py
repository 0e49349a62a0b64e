"""Papers on low rank."""
