"""What the database knows of endpoints of another make alone."""
