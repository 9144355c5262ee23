"""What a run tells its user: a table, JSON, or an HTML page."""
