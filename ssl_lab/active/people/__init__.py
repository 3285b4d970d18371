"""People, and what stands in for them: who answers, what they said, and what counts where they disagree."""
