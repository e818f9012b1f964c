"""The `http` trigger engine (contract section 6)."""
