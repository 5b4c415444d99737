"""Each figure that the README quotes, by one command."""
