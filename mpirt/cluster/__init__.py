"""Who runs where: device strings, cluster descriptions, rank tables, and what launchers say."""
