"""The trigger engine that the project serves itself (contract section 6)."""
