"""An invocation of the scheduler: its life, and how it is closed (contract sections 4 and 5)."""
