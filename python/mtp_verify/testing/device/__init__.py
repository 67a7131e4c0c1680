"""The law of the code that verifies on a device, in a small world, and mistakes on purpose.

`cases` lists what is tried, `drafts` what a drafter may give, `cells` which numbers lead where;
`law` asks a device and adds up. `mutants` changes a line of a device's source, `proof` shares the
work out and makes tables. `backends` makes the sources run without a GPU: those in Triton run in
its interpreter (`interpreter`).
"""
