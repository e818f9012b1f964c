"""`python -m scenario_pipeline` is the `scenario-pipeline` command."""

from scenario_pipeline.cli import main

if __name__ == "__main__":
    main()
