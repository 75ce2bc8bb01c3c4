"""Values → tables, JSON and sentences. Nothing here decides or fetches."""
