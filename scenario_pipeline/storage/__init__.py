"""Everything that is kept in Postgres: tables, migrations, connections and the ledger of runs."""
