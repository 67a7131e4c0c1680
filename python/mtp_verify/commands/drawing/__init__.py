"""What a generation did, step by step: drafts and accepted paths, as text or as a page."""
