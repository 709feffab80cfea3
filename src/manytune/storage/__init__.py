"""What a study directory holds, and how it is read and written."""
