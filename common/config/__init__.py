"""What a run and a site are told: tables of keys, their checks, and the file formats."""
