# One word for each thing that is done often. Without `just`: .ci/steps VERB.

# List the verbs.
default:
    @just --list

# Create .venv with every lock in it and the project as an editable install.
setup:
    .ci/steps setup

# Style, types, licences, Dagster's definitions, advisories.
check:
    .ci/steps lint
    .ci/steps audit

# The tests, as the README's second command runs them.
test:
    .ci/steps tests

# The tests that need no server: seconds.
quick *arguments:
    .ci/steps quick {{ arguments }}

# The tests, with the share of lines that they reach.
coverage:
    .ci/steps coverage

# The tests that make faults: broken servers, full disks, kills.
faults *arguments:
    .ci/steps faults {{ arguments }}

# The tests that need a browser, Postgres with pg_cron, nginx and systemd.
system *arguments:
    .ci/steps system {{ arguments }}

# Build the package, install it where no checkout is in sight, and use it.
wheel:
    .ci/steps wheel

# Build the site into docs/_build, strict about dead links.
docs:
    .ci/steps docs

# Run the measurements of benchmarks/.
bench:
    .ci/steps bench

# Make all locks anew; `just lock --upgrade` takes the newest releases that fit.
lock *arguments:
    requirements/lock {{ arguments }}

# Everything that CI runs.
ci:
    .ci/run
