"""Names of synthesizers, with the place of each one's section of a recipe: ours from one table, others' entry points.

What belongs here: names alone. Completion asks for them at every start of a shell, so nothing that takes time to import
is imported; `registry` resolves them.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

#: Entry point group under which other packages offer synthesizers: ``name = "package.module:ConfigClass"``.
GROUP = "dfqkit.synthesizers"

METHODS = {
    "bank": "dfqkit.synthesis.methods.bank:BankConfig",
    "cmi": "dfqkit.synthesis.methods.cmi:CMIConfig",
    "dafl": "dfqkit.synthesis.methods.dafl:DAFLConfig",
    "deepinversion": "dfqkit.synthesis.methods.deepinversion:DeepInversionConfig",
    "deepinversion-adaptive": "dfqkit.synthesis.methods.deepinversion_adaptive:AdaptiveDeepInversionConfig",
    "dfq": "dfqkit.synthesis.methods.dfq:DFQConfig",
    "diffusion": "dfqkit.synthesis.methods.diffusion:DiffusionConfig",
    "fastdfkd": "dfqkit.synthesis.methods.fastdfkd:FastDFKDConfig",
    "genie": "dfqkit.synthesis.methods.genie:GENIEConfig",
    "images": "dfqkit.synthesis.methods.images:ImagesConfig",
    "metadata": "dfqkit.synthesis.methods.metadata:MetadataConfig",
    "mixture": "dfqkit.synthesis.methods.mixture:MixtureConfig",
    "noise": "dfqkit.synthesis.methods.noise:NoiseConfig",
    "procedural": "dfqkit.synthesis.methods.procedural:ProceduralConfig",
    "psaq": "dfqkit.synthesis.methods.psaq:PSAQConfig",
    "soft-targets": "dfqkit.synthesis.methods.soft_targets:SoftTargetsConfig",
    "zeroq": "dfqkit.synthesis.methods.zeroq:ZeroQConfig",
    "zskd": "dfqkit.synthesis.methods.zskd:ZSKDConfig",
    "zskt": "dfqkit.synthesis.methods.zskt:ZSKTConfig",
}


@functools.cache
def plugins() -> dict[str, str]:
    """Return names that installed packages offer, with their ``module:ConfigClass``."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def synthesizer_names() -> dict[str, str]:
    """Return every known name with its ``module:ConfigClass``, sorted; own names win over plugins'."""
    return dict(sorted((plugins() | METHODS).items()))
