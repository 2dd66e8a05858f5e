"""The graph without weights: litert-torch in a child process, and what it is asked."""
