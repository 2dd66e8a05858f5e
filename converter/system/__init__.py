"""The machine beneath: child processes, strangers' documents, files and their places, memory, signals."""
