"""The commands that answer in a terminal, and the options that several commands share."""
