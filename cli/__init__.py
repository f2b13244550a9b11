"""The command line: a file for each family of commands, with the tables and progress bars beside them."""
