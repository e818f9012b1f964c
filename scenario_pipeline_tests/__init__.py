"""The tests, and what they share."""

import pytest

# Helpers assert, too: their failures are to show the values.
pytest.register_assert_rewrite("scenario_pipeline_tests.support")
