"""Tests that need more than Python: a browser, a second Postgres. CI installs it and names this folder itself."""
