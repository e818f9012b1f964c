"""What the tests share: people, runs, servers and checks."""
