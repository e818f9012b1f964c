"""What several test files share: people, runs, servers, checkers. No test is defined here."""
