"""Database records that exist for official endpoints only."""
