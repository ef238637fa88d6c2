"""The command line: from its words to points and their folders. Imports no torch."""
