<<<<<<< 06fadb2b2fb146ec1b9c772c436c1ebc564a0a0d
"""What several test files share: people, runs, servers, checkers. No test is defined here."""
=======
"""What the tests share: people, runs, servers and checks."""
>>>>>>> a93950fbd53276d7093ce09958e2372453fccdad
