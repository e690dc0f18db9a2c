"""OpenAI's interface for images: its requests become jobs, and its answers and errors are made of theirs."""
