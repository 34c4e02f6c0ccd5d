"""Questions about the method and their answers: benchmarks, and the tables of the paper."""
