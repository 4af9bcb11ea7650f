"""Synthesizers: one method, one file. A new method is its file and one line here."""

METHODS: dict[str, str] = {
    "bank": "dfqkit.synthesis.bank:Bank",
    "cmi": "dfqkit.synthesis.cmi:CMI",
    "dafl": "dfqkit.synthesis.dafl:DAFL",
    "deepinversion": "dfqkit.synthesis.deepinversion:DeepInversion",
    "deepinversion-adaptive": "dfqkit.synthesis.deepinversion_adaptive:AdaptiveDeepInversion",
    "dfq": "dfqkit.synthesis.dfq:DFQ",
    "fastdfkd": "dfqkit.synthesis.fastdfkd:FastDFKD",
    "genie": "dfqkit.synthesis.genie:GENIE",
    "images": "dfqkit.synthesis.images:Images",
    "metadata": "dfqkit.synthesis.metadata:Metadata",
    "mixture": "dfqkit.synthesis.mixture:Mixture",
    "noise": "dfqkit.synthesis.noise:Noise",
    "soft-targets": "dfqkit.synthesis.soft_targets:SoftTargets",
    "zeroq": "dfqkit.synthesis.zeroq:ZeroQ",
    "zskd": "dfqkit.synthesis.zskd:ZSKD",
    "zskt": "dfqkit.synthesis.zskt:ZSKT",
}
