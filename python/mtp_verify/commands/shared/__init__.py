"""What several commands use: the models that they run, their drafters, threads, and comparisons."""
