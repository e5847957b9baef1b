"""Where the program runs: processes, the mesh, known accelerators."""
