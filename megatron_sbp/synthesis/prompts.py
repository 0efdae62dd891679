"""Which seed every document number has, and the prompt and random numbers made of it."""

import numpy as np

from megatron_sbp.corpus.template import Template, join
from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import Request
from megatron_sbp.synthesis.generations import LARGEST, Generations
from megatron_sbp.synthesis.seeds import Seeds
from megatron_sbp.synthesis.store import Provenance


class Prompts:
    """The request of every document number: the template up to d2, and a number per new token.

    Everything random follows from the seed of the run and the document number.

    Args:
        seeds: Where seeds (d1) are drawn from.
        context: Most tokens of prompt and document together.
        seed: Seed of the run.
        template: What stands before and after d1, as in tuning.
        max_seed_tokens: Longer seeds, with what stands beside them, are cut; 0 for half of the room
            that they share with d2, or what ``max_new_tokens`` leaves of it.
        max_new_tokens: A document ends after so many; 0 for as many as the context holds.
        checkpoint: Which model is asked, see ``store.checkpoint_id``.
        generation: Of the model, see ``generations.of_model``.

    Raises:
        InputError: If the context has no room for what is asked.
    """

    def __init__(
        self,
        seeds: Seeds,
        context: int,
        *,
        seed: int,
        template: Template,
        max_seed_tokens: int,
        max_new_tokens: int,
        checkpoint: int = 0,
        generation: int = 0,
    ):
        self._seeds, self._context, self._seed = seeds, context, seed
        self._checkpoint, self._generation = checkpoint, generation
        self._generations = Generations(seeds.corpus)
        self.template = template
        room = context - len(template.before) - len(template.between)
        self._max_new = max_new_tokens or room
        left = room - max_new_tokens if max_new_tokens else room // 2
        self._max_seed = max_seed_tokens or left
        if not 0 < self._max_seed < room or self._max_new > room:
            raise InputError(
                f"--max-seed-tokens {max_seed_tokens}, --max-new-tokens {max_new_tokens}: the "
                f"model's context of {context} tokens has room for {room} of seed and document "
                "together; lower them"
            )

    def request(self, number: int) -> tuple[Request, Provenance]:
        """What to ask the engine for a document, and where the document comes from.

        Raises:
            InputError: If there are more rounds behind the document than can be counted.
        """
        state = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        random = np.random.Generator(np.random.Philox(key=int(state[0])))
        documents = self._seeds.with_related(self._seeds.draw(random))
        body = join(list(map(self._seeds.corpus.body, documents)), self.template.separator)
        kept = body[: self._max_seed]
        prompt = self.template.prompt(kept)
        uniforms = random.random(min(self._max_new, self._context - len(prompt)))
        provenance = Provenance(
            seed=documents[0],
            sampling_seed=int(state[0]),
            seed_tokens=len(kept),
            checkpoint=self._checkpoint,
            generation=self._next_generation(documents),
            seed_cut=len(kept) < len(body),
        )
        return Request(number=number, prompt=prompt, uniforms=uniforms), provenance

    def _next_generation(self, documents: list[int]) -> int:
        """Generation of what the model writes from documents."""
        generation = 1 + max(self._generation, *map(self._generations.of, documents))
        if generation > LARGEST:
            raise InputError(
                f"document {documents[0]}: a synthetic one from it would be of generation "
                f"{generation}, and no more than {LARGEST} can be told apart; use other seeds"
            )
        return generation
