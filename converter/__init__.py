"""Names, Hub access, checkpoint reading, lattice recovery and the command line."""
