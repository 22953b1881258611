"""Image files: decoded, listed, written; tiles of large images, and the memory that these take."""
