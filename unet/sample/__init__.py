"""The generated labelled set."""
