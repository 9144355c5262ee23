"""Graph passes. Each takes a graph, edits it in place, and says whether it changed anything."""
