"""What every room may use, and that uses none: switches, patching, safe files, ranks."""
