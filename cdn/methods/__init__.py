"""What can be done with a model: mathematics that knows no command line and writes no report."""
