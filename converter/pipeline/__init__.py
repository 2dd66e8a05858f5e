"""What a command does from beginning to end: the one room besides the command line that sees checkpoint,
targets and validation."""
