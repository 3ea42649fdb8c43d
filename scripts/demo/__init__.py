"""What the documented demonstrations share."""
