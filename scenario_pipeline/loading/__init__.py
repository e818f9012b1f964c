"""Bulk loading: the import of CSV files and the demonstration data (contract section 2)."""
