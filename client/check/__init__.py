"""`confide data check`: what is wrong with a site's rows, before a run.

Everything stays in a folder at the site: nothing here opens a connection, and nothing that is written is read by a run.
A finding may quote records.
"""
