"""Text for people: tables, sizes and times, printable forms."""
