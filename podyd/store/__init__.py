"""podyd's own database; the only importer of sqlite3."""
