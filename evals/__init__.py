"""Is the routing right, and is the routed answer better than one generalist's?"""
