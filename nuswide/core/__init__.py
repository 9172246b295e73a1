"""What all folders use: processes, signals, memory, files and locks."""
