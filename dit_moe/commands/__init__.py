"""The programs, a file each: a parser and one call."""
