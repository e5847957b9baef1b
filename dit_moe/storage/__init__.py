"""Files: whole or absent, safe to read, as records or pictures."""
