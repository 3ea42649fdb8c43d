"""The page at `/` in a real browser: Debian's Chromium, headless."""
