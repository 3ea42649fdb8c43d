"""Parts that the documented demonstrations share."""
