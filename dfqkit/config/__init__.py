"""What a recipe may hold, by what names its parts go and where its files are found; nothing here imports torch."""
