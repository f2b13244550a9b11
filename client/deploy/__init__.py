"""A real site: its folder, its connection, its resident worker."""
