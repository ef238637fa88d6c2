"""Questions about made-up facts, as a source: no file, no network, and an entropy that is known. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from research_stack.data.questions.fact_world import RECIPE, ContextDistribution
from research_stack.data.questions.question import Question
from research_stack.require import require


class Facts:
    """Generated facts about people and questions about them. The defaults give contexts of 136 bytes on average.

    - facts: F, of a context that can be asked for; a multiple of `entities`, who all have the same attributes.
    - entities: E people with facts. hops: H - 1 sentences "X's friend is Y." lead to each of them from the person asked
      about.
    - distractors: D facts about other people. bytes: with a number, further such facts as long as the context stays
      within it; a context that is longer without them stays as it is.
    - contexts: how many; fewer are the beginning of more. questions: asked of each context, about different facts.
    - wordings: W, 1 or 2 sentences that say the same. people, attributes, values: how many of each list are used.
    - seed: of the draws, not of the run.
    - name: the data set that results count among; two sources of facts in a mixture need different ones.

    Contexts with the same facts stand on one side of the split, whatever their wording, order and distractors.
    """

    #: See research_stack.config.smoke.
    smoke = {"contexts": 60}

    def __init__(
        self,
        facts: int = 5,
        entities: int = 1,
        hops: int = 1,
        distractors: int = 0,
        contexts: int = 20000,
        questions: int = 1,
        bytes: int | None = None,
        wordings: int = 2,
        people: int = 32,
        attributes: int = 12,
        values: int = 16,
        seed: int = 0,
        name: str = "qa_facts",
    ) -> None:
        require(facts >= 1, f"facts={facts} must be at least 1")
        require(entities >= 1, f"entities={entities} must be at least 1")
        require(
            facts % entities == 0,
            f"facts={facts} must be a multiple of entities={entities}: all have the same attributes",
        )
        require(1 <= hops <= 3, f"hops={hops} must lie in [1, 3]")
        require(distractors >= 0, f"distractors={distractors} must not be negative")
        require(contexts >= 2, f"contexts={contexts} must be at least 2")
        require(contexts <= 10_000_000, f"contexts={contexts} must be at most 10,000,000")
        require(
            1 <= questions <= facts, f"questions={questions} must lie in [1, facts={facts}]: a fact is asked for once"
        )
        require(bytes is None or bytes >= 1, f"bytes={bytes} must be at least 1, or null for no filling")
        require(bytes is None or bytes <= 1_000_000, f"bytes={bytes} must be at most 1,000,000")
        require(1 <= wordings <= 2, f"wordings={wordings} must be 1 or 2")
        require(1 <= people <= 32, f"people={people} must lie in [1, 32]")
        require(1 <= attributes <= 12, f"attributes={attributes} must lie in [1, 12]")
        require(1 <= values <= 16, f"values={values} must lie in [1, 16]")
        require(
            facts // entities <= attributes,
            f"facts={facts} must be at most attributes={attributes} for each of entities={entities}",
        )
        require(entities * hops <= people, f"entities={entities} x hops={hops} must be at most people={people}")
        require(
            distractors <= (people - entities * hops) * attributes,
            f"distractors={distractors} must be at most {(people - entities * hops) * attributes}: each is "
            f"one of attributes={attributes} of one of {people - entities * hops} people nobody asks about",
        )
        self.name = name
        self.distribution = ContextDistribution(
            facts, entities, hops, distractors, contexts, questions, bytes, wordings, people, attributes, values, seed
        )

    def check(self) -> None:
        """Always available."""

    def questions(self) -> Iterator[Question]:
        """The questions, context by context."""
        for number, made in enumerate(self.distribution.made(), 1):
            for asked, (question, answer, start) in enumerate(made.asked, 1):
                yield Question(
                    f"{self.name}:{number}.{asked}",
                    self.name,
                    made.context,
                    question,
                    (answer,),
                    "squad",
                    f"facts:{made.facts}",
                    start,
                )

    @property
    def entropy_bits(self) -> float | None:
        """Bits of a context, exact for the law it is drawn by (see `ContextDistribution`); None with `bytes`."""
        return self.distribution.entropy_bits

    @property
    def answer_bits(self) -> float:
        """Bits of the facts that can be asked for, without wording, order and distractors."""
        return self.distribution.answer_bits

    def describe(self) -> dict[str, Any]:
        """`entropy_bits`, where it is known, and `answer_bits`."""
        bits = {} if self.entropy_bits is None else {"entropy_bits": round(self.entropy_bits, 4)}
        return {**bits, "answer_bits": round(self.answer_bits, 4)}

    def fingerprint(self) -> str:
        """The recipe and every option."""
        options = "-".join(f"{name}={value}" for name, value in asdict(self.distribution).items())
        return f"facts{RECIPE}-{self.name}-{options}"
