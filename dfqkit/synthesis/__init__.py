"""Synthesizers: one method, one file. A new method is its file and one line here."""

METHODS: dict[str, str] = {
    "dfq": "dfqkit.synthesis.dfq:DFQ",
}
