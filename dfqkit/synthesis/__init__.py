"""Synthesizers: one method, one file. A new method is its file and one line here."""

METHODS: dict[str, str] = {
    "bank": "dfqkit.synthesis.methods.bank:Bank",
    "cmi": "dfqkit.synthesis.methods.cmi:CMI",
    "dafl": "dfqkit.synthesis.methods.dafl:DAFL",
    "deepinversion": "dfqkit.synthesis.methods.deepinversion:DeepInversion",
    "deepinversion-adaptive": "dfqkit.synthesis.methods.deepinversion_adaptive:AdaptiveDeepInversion",
    "dfq": "dfqkit.synthesis.methods.dfq:DFQ",
    "fastdfkd": "dfqkit.synthesis.methods.fastdfkd:FastDFKD",
    "genie": "dfqkit.synthesis.methods.genie:GENIE",
    "images": "dfqkit.synthesis.methods.images:Images",
    "metadata": "dfqkit.synthesis.methods.metadata:Metadata",
    "mixture": "dfqkit.synthesis.methods.mixture:Mixture",
    "noise": "dfqkit.synthesis.methods.noise:Noise",
    "soft-targets": "dfqkit.synthesis.methods.soft_targets:SoftTargets",
    "zeroq": "dfqkit.synthesis.methods.zeroq:ZeroQ",
    "zskd": "dfqkit.synthesis.methods.zskd:ZSKD",
    "zskt": "dfqkit.synthesis.methods.zskt:ZSKT",
}
