"""The event log: vocabulary, schema, validation, the logger and stdout (contract section 5)."""
