"""What one would otherwise learn at 3 a.m.: the facts are gathered once, and judged by functions of them alone.

Promises: nothing is changed, but for a key of a second that nobody else uses; a store that does not answer is a finding, in
the time that its options give it; no password is in what is found.

Not promised: that all is well where nothing is found. It sees the settings of one process, and one moment of the servers.
"""
