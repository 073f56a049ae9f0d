"""Writing a network as Python source that a person would like to read."""
