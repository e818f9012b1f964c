"""The ledger: what each invocation and each page did (contract section 4)."""
