"""One synthesizer made of several; what it is and who gets what is told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.mixture import MixtureConfig
from dfqkit.synthesis.methods.mixture.turns import counts, turns, until_empty
from dfqkit.synthesis.optimizers import under


class Mixture(Synthesizer):
    """Several sources, each with its share of the images; needs what they need."""

    config: MixtureConfig

    def _set_up(self) -> None:
        super()._set_up()
        config = self.config
        demands = config.demands(self.demand)
        self.parts = [
            build_synthesizer(source, self.teacher, self._own_generator(), own)
            for source, own in zip(config.active, demands, strict=True)
        ]
        self.prefixes = self._prefixes(demands)
        self.need_student = ["student" in source.needed for source in config.active]
        self.done = [0] * len(self.parts)
        self.given = {"fresh": list(self.done), "training": list(self.done)}

    def _own_generator(self) -> torch.Generator:
        seed = int(torch.randint(2**62, (1,), generator=self.rng, device=self.device))
        return torch.Generator(device=self.device).manual_seed(seed)

    def _prefixes(self, demands: Sequence[Demand]) -> list[str]:
        """Return what precedes the names of each source's terms: nothing where only one source has any."""
        sources = self.config.active
        working = [
            part.warmup_rounds > 0 or source.costs(own)
            for part, source, own in zip(self.parts, sources, demands, strict=True)
        ]
        if sum(working) < 2:
            return [""] * len(sources)
        methods = [source.method for source in sources]
        return [
            f"{method}{methods[: index + 1].count(method) if methods.count(method) > 1 else ''}."
            for index, method in enumerate(methods)
        ]

    def ask(self, fresh: int) -> None:
        """Ask every source for its share; those of images that are there already have no more than they took."""
        super().ask(fresh)
        for part, own in zip(self.parts, counts(self.config.shares, fresh), strict=True):
            part.ask(own)

    @property
    def warmup_rounds(self) -> int:
        """Of all sources."""
        return sum(part.warmup_rounds for part in self.parts)

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Return a round of the source whose turn it is; in a game, and after the warm-up, one of every source."""
        warming = sum(self.done) < self.warmup_rounds and not (students and not any(self.need_student))
        rounds = [part.warmup_rounds for part in self.parts]
        members = turns(self.done, rounds, 1) if warming else range(len(self.parts))
        total: Losses = {}
        for index in members:
            shown = students if self.need_student[index] or not warming else ()
            terms = self.parts[index].synthesize(shown)
            total |= {f"{self.prefixes[index]}{name}": value for name, value in terms.items()}
            self.done[index] += warming
        self.cost = sum(part.cost for part in self.parts)
        return total

    @property
    def available(self) -> int | None:
        """Until the first source that has no more is due."""
        left = [part.available for part in self.parts]
        return until_empty(self.given["fresh"], self.config.shares, left)

    def sample(self, n: int) -> Tensor:
        """Fresh images of all sources in turn."""
        return self._drawn(n, "fresh")

    def training_batch(self, n: int) -> Tensor:
        """Training images (n, C, H, W) of all sources in turn."""
        return self._drawn(n, "training")

    def _drawn(self, n: int, what: str) -> Tensor:
        given = self.given[what]
        order = torch.tensor(turns(given, self.config.shares, n), dtype=torch.int64)
        drawn: Tensor | None = None
        for index, part in enumerate(self.parts):
            places = torch.nonzero(order == index).flatten().to(self.device)
            if not len(places):
                continue
            images = part.sample(len(places)) if what == "fresh" else part.training_batch(len(places))
            drawn = images.new_empty((n, *images.shape[1:])) if drawn is None else drawn
            drawn[places] = images
            given[index] += len(places)
        return torch.empty((0, *self.teacher.image.shape), device=self.device) if drawn is None else drawn

    def state_dict(self) -> dict[str, Tensor]:
        """Return every source's state, whose turn it is, and the random state."""
        state = {
            "mixture.done": torch.tensor(self.done),
            "mixture.fresh": torch.tensor(self.given["fresh"]),
            "mixture.training": torch.tensor(self.given["training"]),
            "rng": self.rng.get_state(),
        }
        for index, part in enumerate(self.parts):
            state |= {f"part.{index}.{name}": value for name, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.done = state["mixture.done"].tolist()
        self.given = {name: state[f"mixture.{name}"].tolist() for name in ("fresh", "training")}
        self.rng.set_state(state["rng"].cpu())
        for index, part in enumerate(self.parts):
            part.load_state_dict(under(state, f"part.{index}."))
        self.cost = sum(part.cost for part in self.parts)
