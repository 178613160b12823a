"""The filter study: did a filter help, by how much, and how sure is that?"""
