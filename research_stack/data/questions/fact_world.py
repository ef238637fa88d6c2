"""Made-up facts about people, in plain short sentences, and questions about them. No torch.

A context is a handful of sentences such as "Mira drives a van to work." in random order. People, attributes, values,
wording and order are drawn uniformly and independently, so the entropy of a context is known exactly: what a wire would
have to carry.

Letters: P people, A attributes, V values of each, F facts of a context, E people asked about, H hops, D distractors, W
wordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from math import comb, factorial, log2, perm

import numpy as np

from research_stack.streams import seed_of

RECIPE = 1  # raise it when words, sentences or draws change: it is part of the fingerprint
TOGETHER = 1024  # contexts drawn at a time, each such block from a stream of its own
PEOPLE = (
    "Ada",
    "Ben",
    "Carl",
    "Dora",
    "Emil",
    "Fred",
    "Gina",
    "Hugo",
    "Iris",
    "Jack",
    "Kira",
    "Liam",
    "Mira",
    "Nora",
    "Omar",
    "Paul",
    "Quinn",
    "Rosa",
    "Sven",
    "Tina",
    "Uma",
    "Vera",
    "Walt",
    "Xena",
    "Yves",
    "Zoe",
    "Alma",
    "Boris",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
)


@dataclass(frozen=True)
class Attribute:
    """Something that a person has one value of: how it is said, shortly and at length, how it is asked, and the 16
    values.
    """

    wordings: tuple[str, str]
    question: str
    values: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


ATTRIBUTES = (
    Attribute(
        ("{n} lives in {v}.", "{n} lives in {v} with an old aunt."),
        "Where does {n} live?",
        _words(
            "Oslo, Paris, Rome, Tokyo, New York, Cairo, Lima, Boston, Dublin, Madrid, Cape Town, Berlin, Vienna,"
            " Sydney, Hong Kong, Prague"
        ),
    ),
    Attribute(
        ("{n} is a {v}.", "{n} is a {v} in a small firm."),
        "What is the job of {n}?",
        _words(
            "baker, doctor, bus driver, nurse, painter, lawyer, fire fighter, teacher, tailor, pilot, judge, farmer,"
            " book seller, singer, waiter, miner"
        ),
    ),
    Attribute(
        ("{n} has a {v}.", "{n} has a {v} that sleeps a lot."),
        "Which pet does {n} have?",
        _words(
            "cat, dog, horse, rabbit, sea turtle, parrot, goat, hamster, snow owl, pig, duck, lizard, gold fish,"
            " spider, donkey, mouse"
        ),
    ),
    Attribute(
        ("{n} eats {v}.", "{n} eats {v} every day at noon."),
        "What does {n} eat?",
        _words(
            "fish soup, rice, bread, cheese, plum cake, pasta, beans, pizza, fried eggs, salad, carrots, pears, ham"
            " pie, nuts, onions, honey"
        ),
    ),
    Attribute(
        ("{n} drinks {v}.", "{n} drinks {v} in the garden."),
        "What does {n} drink?",
        _words(
            "black tea, coffee, milk, cocoa, apple juice, water, cider, beer, red wine, lemonade, rum, cola, ginger"
            " ale, whisky, punch, vodka"
        ),
    ),
    Attribute(
        ("{n} wears {v}.", "{n} wears {v} from head to toe."),
        "Which colour does {n} wear?",
        _words(
            "blue, green, white, brown, dark grey, pink, yellow, purple, pale cyan, silver, scarlet, beige, deep olive,"
            " navy, ivory, teal"
        ),
    ),
    Attribute(
        ("{n} plays the {v}.", "{n} plays the {v} after dark."),
        "Which instrument does {n} play?",
        _words(
            "piano, violin, flute, harp, bass drum, guitar, cello, trumpet, mouth organ, banjo, tuba, oboe, church"
            " bells, lute, horn, fiddle"
        ),
    ),
    Attribute(
        ("{n} loves {v}.", "{n} loves {v} more than work."),
        "Which sport does {n} love?",
        _words(
            "tennis, golf, boxing, rowing, ice hockey, rugby, judo, diving, high jump, chess, surfing, cricket, speed"
            " skating, archery, polo, fencing"
        ),
    ),
    Attribute(
        ("{n} is {v}.", "{n} is {v} years old now."),
        "How old is {n}?",
        _words(
            "seven, nine, twelve, forty, sixty two, eleven, fifteen, eighty, thirty one, sixteen, ten, ninety, fifty"
            " four, twenty, eight, fourteen"
        ),
    ),
    Attribute(
        ("{n} drives a {v}.", "{n} drives a {v} to work."),
        "What does {n} drive?",
        _words(
            "van, truck, bike, tram, steam train, taxi, scooter, boat, racing car, jeep, tractor, sledge, school bus,"
            " wagon, ferry, canoe"
        ),
    ),
    Attribute(
        ("{n} is from {v}.", "{n} is from {v} and is proud."),
        "Where is {n} from?",
        _words(
            "China, Spain, Kenya, Brazil, South Korea, India, Norway, Greece, Sri Lanka, Peru, Turkey, Canada, Saudi"
            " Arabia, Egypt, Cuba, Poland"
        ),
    ),
    Attribute(
        ("{n} was born on {v}.", "{n} was born on {v} at dawn."),
        "When was {n} born?",
        _words(
            "May 3, June 8, April 12, July 20, March 5, August 17, January 9, October 26, December 2, November 14,"
            " February 23, September 30, May 19, June 28, April 11, July 4"
        ),
    ),
)
FRIEND = "{a}'s friend is {b}."


@dataclass(frozen=True, slots=True)
class GeneratedContext:
    """A context, the facts that can be asked for (in an order of their own), and (question, answer, where it begins) of
    what is asked.
    """

    context: str
    facts: str
    asked: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class ContextDistribution:
    """How contexts are drawn; `sources_facts.Facts` says what the numbers mean and checks them."""

    facts: int
    entities: int
    hops: int
    distractors: int
    contexts: int
    questions: int
    bytes: int | None
    wordings: int
    people: int
    attributes: int
    values: int
    seed: int

    @cached_property
    def sentences(self) -> int:
        """Sentences of a context before it is filled up: facts, friends and distractors."""
        return self.facts + self.entities * (self.hops - 1) + self.distractors

    @cached_property
    def answer_bits(self) -> float:
        """log2 of the number of equally likely sets of facts that can be asked for: people, attributes and values,
        without order and wording.
        """
        asked = perm(self.people, self.entities * self.hops) // factorial(self.entities)
        return log2(asked) + log2(comb(self.attributes, self.facts // self.entities)) + self.facts * log2(self.values)

    @cached_property
    def entropy_bits(self) -> float | None:
        """log2 of the number of equally likely contexts: `answer_bits`, distractors, wordings and the order of the
        sentences.

        Who can be asked about counts as part of a context: of a text with distractors alone it is an upper bound,
        without them exact. None with `bytes`: how many distractors fit depends on what was drawn.
        """
        if self.bytes is not None:
            return None
        others = (self.people - self.entities * self.hops) * self.attributes
        distractors = log2(comb(others, self.distractors)) + self.distractors * log2(self.values)
        return (
            self.answer_bits
            + distractors
            + log2(factorial(self.sentences))
            + (self.facts + self.distractors) * log2(self.wordings)
        )

    def made(self) -> Iterator[GeneratedContext]:
        """The contexts, in order."""
        for start in range(0, self.contexts, TOGETHER):
            rng = np.random.default_rng(seed_of(self.seed, "facts", start))
            yield from islice(self._block(rng), self.contexts - start)

    def _block(self, rng: np.random.Generator) -> Iterator[GeneratedContext]:
        """TOGETHER contexts."""
        rest = (self.people - self.entities * self.hops) * self.attributes if self.distractors or self.bytes else 0
        yield from map(
            self._made,
            _shuffled(rng, self.people),
            _shuffled(rng, self.attributes),
            rng.integers(self.values, size=(TOGETHER, self.facts)).tolist(),
            rng.integers(self.wordings, size=(TOGETHER, self.facts)).tolist(),
            _shuffled(rng, self.facts),
            _shuffled(rng, rest),
            rng.integers(self.values * self.wordings, size=(TOGETHER, rest)).tolist(),
            rng.random((TOGETHER, self.sentences + rest)),
        )

    def _made(
        self,
        people: list[int],
        attributes: list[int],
        values: list[int],
        wordings: list[int],
        asked: list[int],
        others: list[int],
        sayings: list[int],
        keys: np.ndarray,
    ) -> GeneratedContext:
        """A context from its draws: permutations of people, attributes, facts and the others' attributes; numbers of
        values and wordings; sort keys.
        """
        each = self.facts // self.entities
        chains = [[PEOPLE[i] for i in people[e * self.hops : (e + 1) * self.hops]] for e in range(self.entities)]
        links = [FRIEND.format(a=a, b=b) for chain in chains for a, b in pairwise(chain)]
        owned = [(chains[f // each], ATTRIBUTES[attributes[f % each]], values[f]) for f in range(self.facts)]
        said = [
            _said(attribute, chain[-1], value, wording)
            for (chain, attribute, value), wording in zip(owned, wordings, strict=True)
        ]
        sentences = links + said
        for number, (other, saying) in enumerate(zip(others, sayings, strict=True)):
            person, attribute = divmod(other, self.attributes)
            name = PEOPLE[people[self.entities * self.hops + person]]
            sentence = _said(ATTRIBUTES[attribute], name, *divmod(saying, self.wordings))
            if number >= self.distractors and (
                self.bytes is None or sum(len(s) + 1 for s in sentences) + len(sentence) > self.bytes
            ):
                break
            sentences.append(sentence)
        context = " ".join(sentences[i] for i in np.argsort(keys[: len(sentences)]))
        facts = sorted(links + [_said(attribute, chain[-1], value, 0) for chain, attribute, value in owned])
        starts = [
            context.index(said[f])
            + len(owned[f][1].wordings[wordings[f]].partition("{v}")[0].format(n=owned[f][0][-1]))
            for f in asked[: self.questions]
        ]
        return GeneratedContext(
            context,
            " ".join(facts),
            tuple((*_asked(*owned[f]), start) for f, start in zip(asked, starts, strict=False)),
        )


def _said(attribute: Attribute, name: str, value: int, wording: int) -> str:
    """The sentence of a fact."""
    return attribute.wordings[wording].format(n=name, v=attribute.values[value])


def _asked(chain: list[str], attribute: Attribute, value: int) -> tuple[str, str]:
    """(question, answer) of a fact about the last of a chain of friends."""
    return attribute.question.format(n=chain[0] + "'s friend" * (len(chain) - 1)), attribute.values[value]


def _shuffled(rng: np.random.Generator, count: int) -> list[list[int]]:
    """TOGETHER permutations of 0, ..., count - 1."""
    return rng.permuted(np.tile(np.arange(count, dtype=np.int16), (TOGETHER, 1)), axis=1).tolist()
