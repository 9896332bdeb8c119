"""What a new user gets wrong: a list, and what the program says to each in one line that names the mend."""
