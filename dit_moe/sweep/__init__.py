"""Many runs by one file: a grid, a queue that any number of workers share, a table and a law."""
