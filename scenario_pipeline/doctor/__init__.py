"""`scenario-pipeline doctor`: what would keep the scheduler from working, and the command that fixes it."""
