"""Whether it was worth it: queries side by side, and what their numbers may say."""
