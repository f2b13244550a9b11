"""What a run and a site are told: tables of keys, the rules of their combinations, and the file formats."""
