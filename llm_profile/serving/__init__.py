"""What a serving step takes, of any composition: fitted to those that were measured."""
