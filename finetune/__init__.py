"""A released checkpoint into a small student."""
