"""Many requests from one file or folder to one folder of results, each exactly once, also after a kill.

A result's name holds a key: a digest of the request, of its inputs' contents and of the bundle. A result is
written under another name and renamed, so a file of that name is whole and is the row's. Running the same batch again
makes what is missing and nothing else; a changed input, request or bundle has another key and is made again.
Everything else in the folder is made anew from that: `results.jsonl` lists the results that are there,
`failed.jsonl` says why the others are not.
"""
