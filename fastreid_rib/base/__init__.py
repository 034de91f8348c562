"""What every room may use, and that uses none: see the names of the files."""
