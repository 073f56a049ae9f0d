"""The database schema, one revision per file in `versions/`; `store.database.Database.migrate` runs them."""
