"""SYNTHETIC replies with a planted preference: nobody wrote them and nobody liked them. No torch.

Each reply is put together from parts, and its engagement is drawn from a law that is known:

    ln mean = BASE + 1.2 on_topic + .6 tone + .5 example + .4 question + .3 (words - 30) / 15
    likes + shares ~ Poisson(mean g),  g ~ Gamma with mean 1 and standard deviation `noise`   (negative binomial)

on_topic: the advice is about the prompt's topic and not another's. tone: 1 warm, 0 matter-of-fact, -1 curt. example:
the reply gives one. question: it asks one back. words: its length. So a model of engagement can be judged against what
it ought to find, `log_mean`, and against the best that anything can reach, the correlation of `log_mean` with ln(1 +
engagement).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from research_stack.require import require

RECIPE = 1  # raise it when what is drawn changes: it is part of the fingerprint
MOST = 20_000  # pairs; the prompts below do not last for many more
BASE, WEIGHTS = 0.8, {"on_topic": 1.2, "tone": 0.6, "example": 0.5, "question": 0.4, "length": 0.3}
REPLIES = (4, 8)  # fewest and most replies to a prompt
SHARED = 0.2  # of the engagement that is shares

ASKING = (
    "What is the best way to get started with {}?",
    "I keep failing at {}. What am I doing wrong?",
    "Is {} worth the effort?",
    "How long does it take to get good at {}?",
    "Any advice on {} for somebody who is short of time?",
    "What do people get wrong about {}?",
    "Could someone explain {} to me in simple terms?",
    "I am thinking about giving up on {}. Thoughts?",
    "What would you have liked to know before you began with {}?",
    "How do you keep {} from becoming a chore?",
    "What is a realistic first goal for {}?",
    "My friends say {} is a waste of time. Are they right?",
)
SETTINGS = (
    "",
    " I am a complete beginner.",
    " I only have the weekends.",
    " My budget is small.",
    " I have tried twice before.",
)

# topic: what prompts ask about; what replies advise; the examples and the questions back that belong to it
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "baking": (
        (
            "sourdough bread",
            "rye bread",
            "croissants",
            "pizza dough",
            "birthday cakes",
            "macarons",
            "bagels",
            "fruit pies",
        ),
        (
            "Weigh the flour on a scale.",
            "Let the dough rise in a cool kitchen overnight.",
            "Preheat the oven with a stone inside.",
            "Keep the butter cold until it goes in.",
            "Watch the dough and not the clock.",
            "A wet dough gives an open crumb.",
            "Steam in the oven makes the crust.",
        ),
        (
            "my first loaf came out flat until I gave it {} more hours",
            "with {} grams less water the dough held its shape",
            "I bake {} trays at a time and freeze them",
        ),
        ("Which flour do you use?", "How hot does your oven get?", "How long do you let it rise?"),
    ),
    "running": (
        (
            "marathon training",
            "running in winter",
            "trail running",
            "morning runs",
            "sprint training",
            "a first 10k race",
            "barefoot running",
            "running uphill",
        ),
        (
            "Run most of your miles slowly.",
            "Add distance by a tenth each week.",
            "Replace worn shoes before your knees complain.",
            "Sleep is half of the training.",
            "Warm up the calves first.",
            "One hard session a week is enough.",
            "A steady pace beats a fast start.",
        ),
        (
            "I ran {} kilometres slowly before my first race",
            "after {} weeks my resting pulse had dropped",
            "I walk {} minutes before every run",
        ),
        ("How many miles do you run a week?", "Do your knees hurt afterwards?", "What pace do you hold now?"),
    ),
    "gardening": (
        (
            "growing tomatoes",
            "a balcony garden",
            "rose pruning",
            "composting",
            "growing herbs indoors",
            "a vegetable patch",
            "keeping orchids",
            "lawn care",
        ),
        (
            "Water the roots in the morning.",
            "Healthy soil matters more than fertilizer.",
            "Prune just above an outward bud.",
            "Mulch keeps the weeds down.",
            "Most pots need more drainage.",
            "Seedlings want light from all sides.",
            "Slugs come at night, so look then.",
        ),
        (
            "I got {} kilos from a single plant",
            "my seedlings needed {} days on the windowsill",
            "{} handfuls of compost saved my beds",
        ),
        ("How much sun does the place get?", "What is your soil like?", "When did you plant them?"),
    ),
    "programming": (
        (
            "learning Python",
            "writing unit tests",
            "code reviews",
            "debugging memory leaks",
            "functional programming",
            "database design",
            "open source work",
            "refactoring old code",
        ),
        (
            "Write the failing test first.",
            "Read the error message to its end.",
            "Make small commits that explain why.",
            "Measure before you optimise a loop.",
            "Delete code that nobody calls.",
            "Name a function after what it returns.",
            "Bisect the history to find the bug.",
        ),
        (
            "I split a function of {} lines and the bug was plain to see",
            "a query fell from {} seconds to none with an index",
            "{} small scripts taught me more than any course",
        ),
        ("Which language are you using?", "Do you have a stack trace?", "How large is the code base?"),
    ),
    "money": (
        (
            "saving for a house",
            "index funds",
            "paying off debt",
            "a household budget",
            "retirement planning",
            "freelance taxes",
            "an emergency fund",
            "credit scores",
        ),
        (
            "Pay the loan with the highest interest first.",
            "Keep three months of expenses in cash.",
            "Low fees matter more than clever picks.",
            "Move savings on the day you are paid.",
            "Write down every expense for a month.",
            "Rebalance the portfolio once a year.",
            "Insurance is for losses you cannot bear.",
        ),
        (
            "putting away {} a week paid for my deposit",
            "I was free of debt after {} months",
            "a fee of one percent had cost me {} hundred",
        ),
        ("What interest do you pay?", "Do you have any savings yet?", "How stable is your income?"),
    ),
    "music": (
        (
            "playing the guitar",
            "learning the piano",
            "singing in a choir",
            "reading sheet music",
            "music theory",
            "home recording",
            "the violin",
            "jazz improvisation",
        ),
        (
            "Practise slowly with a metronome.",
            "Learn the chords of songs you love.",
            "Record yourself and listen the next day.",
            "Tune the instrument every time.",
            "Scales are dull and they work.",
            "Breathe before the phrase begins.",
            "Play with others as early as you can.",
        ),
        (
            "I played one song for {} days until the change of chords was clean",
            "at {} beats a minute my fingers finally obeyed",
            "{} minutes a day did more than a long Sunday",
        ),
        ("Do you have a teacher?", "Which songs do you like?", "Can you read notes?"),
    ),
    "travel": (
        (
            "travelling alone",
            "a trip to Japan",
            "packing light",
            "cheap flights",
            "long train journeys",
            "camping in the mountains",
            "travelling with children",
            "jet lag",
        ),
        (
            "Book the first night and leave the rest open.",
            "One bag that fits under the seat is plenty.",
            "Trains show you more than planes.",
            "Carry copies of your passport.",
            "Eat where the local people queue.",
            "Fly on a Tuesday for the lower fare.",
            "Set your watch to the new time at once.",
        ),
        (
            "I spent {} days in one town and liked it best",
            "my rucksack weighed {} kilos for a whole month",
            "the night train saved me {} hotel nights",
        ),
        ("Which season are you going in?", "Are you going by yourself?", "How many days do you have?"),
    ),
    "dogs": (
        (
            "training a puppy",
            "a barking dog",
            "walking on a leash",
            "adopting a rescue dog",
            "feeding an old dog",
            "crate training",
            "dogs and cats together",
            "leaving a dog alone",
        ),
        (
            "Reward the calm moment with a treat.",
            "Short lessons before meals work best.",
            "A tired dog is a quiet dog.",
            "Stop walking whenever the leash is tight.",
            "Never call your dog in order to scold it.",
            "Let a shy dog come to you.",
            "Ask the vet about the teeth first.",
        ),
        (
            "my terrier needed {} short lessons to learn it",
            "after {} walks without pulling we celebrated",
            "leaving for {} minutes at a time cured the howling",
        ),
        ("How old is your dog?", "Which breed is it?", "How often do you walk?"),
    ),
}

OPENINGS = {
    1: (
        "Great question, and you are closer than you think!",
        "Thank you for asking this, I was in the same place once.",
        "You are doing really well already.",
        "I love that you are trying this!",
        "Do not be discouraged, everyone struggles here.",
        "Happy to help, this gets easier, I promise.",
        "What a lovely thing to take up!",
        "Be kind to yourself, you have made a good start.",
    ),
    0: (
        "There are a few things to know.",
        "It depends on several factors.",
        "Here is the usual approach.",
        "In short, the basics matter.",
        "This is how it is commonly done.",
        "Some points to consider.",
        "The standard answer is as follows.",
        "One way to see it is this.",
    ),
    -1: (
        "Obviously you did not read the manual.",
        "This gets asked every single day.",
        "Stop whining and just do it.",
        "Seriously? Use the search.",
        "You are overthinking this, as usual.",
        "Not this again.",
        "Nobody can help you if you will not try.",
        "Wrong question.",
    ),
}
CLOSINGS = {
    1: (
        "You can do this!",
        "I am rooting for you.",
        "Let us know how it goes, we are glad you are here.",
        "Best of luck, and enjoy it!",
    ),
    0: ("That covers the main points.", "Results vary.", "That is the general idea.", "The rest is repetition."),
    -1: ("Figure it out yourself.", "It is really not that hard.", "Do your homework next time.", "End of story."),
}


@dataclass(frozen=True)
class Reply:
    """One synthetic reply: what a file of real ones would hold, then the features it was made with (see the module)."""

    prompt: str
    reply: str
    likes: int
    shares: int
    on_topic: int
    tone: int
    example: int
    question: int
    words: int
    log_mean: float

    @property
    def engagement(self) -> int:
        """Likes and shares together."""
        return self.likes + self.shares


def log_mean(on_topic: int, tone: int, example: int, question: int, words: int) -> float:
    """ln of the expected engagement of a reply with these features: the plant."""
    features = {
        "on_topic": on_topic,
        "tone": tone,
        "example": example,
        "question": question,
        "length": (words - 30) / 15,
    }
    return BASE + sum(weight * features[name] for name, weight in WEIGHTS.items())


def replies(count: int, noise: float, seed: int) -> list[Reply]:
    """`count` different pairs, prompt after prompt, 4 to 8 replies to each.

    - noise: standard deviation of the factor on the mean; 0 leaves the Poisson's own.
    - seed: of everything; the texts do not depend on the noise.
    """
    from research_stack.streams import seed_of  # imports torch

    require(0 < count <= MOST, f"count={count} must be at least 1 and at most {MOST}")
    require(math.isfinite(noise) and noise >= 0, f"noise={noise} must be a number of at least 0")
    texts = np.random.default_rng(seed_of(seed, "planted replies", "texts"))
    luck = np.random.default_rng(seed_of(seed, "planted replies", "engagement"))
    found: list[Reply] = []
    for topic, prompt in _prompts(texts):
        said: set[str] = set()
        for _ in range(min(int(texts.integers(REPLIES[0], REPLIES[1] + 1)), count - len(found))):
            reply, features = _fresh(topic, texts, said)
            mean = math.exp(log_mean(**features))
            total = int(luck.poisson(mean * (luck.gamma(noise**-2, noise**2) if noise else 1.0)))
            shares = int(luck.binomial(total, SHARED))
            found.append(Reply(prompt, reply, total - shares, shares, **features, log_mean=log_mean(**features)))
        if len(found) == count:
            break
    return found


def write(path: str | Path, count: int = 4000, noise: float = 0.5, seed: int = 0) -> Path:
    """Write the pairs of `replies` to a .jsonl or .parquet file, a field for each attribute of `Reply`; returns its
    path.

    The layout that data=replies reads is prompt, reply and any counts; the features and log_mean are there for checks.
    """
    path = Path(path)
    require(path.suffix in (".jsonl", ".parquet"), f"path={path} must end in .jsonl or .parquet")
    rows = [asdict(reply) for reply in replies(count, noise, seed)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _prompts(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """(topic, prompt) for every way to ask about every subject, in random order."""
    ways = [
        (topic, asking.format(subject) + setting)
        for topic, parts in TOPICS.items()
        for subject, asking, setting in product(parts[0], ASKING, SETTINGS)
    ]
    return (ways[i] for i in rng.permutation(len(ways)))


def _fresh(topic: str, rng: np.random.Generator, said: set[str]) -> tuple[str, dict[str, int]]:
    """A reply that is not among those said already, and its features."""
    while True:
        reply, features = _compose(topic, rng)
        if reply not in said:
            said.add(reply)
            return reply, features


def _compose(topic: str, rng: np.random.Generator) -> tuple[str, dict[str, int]]:
    """A reply put together at random, and its features."""
    on_topic, tone = int(rng.random() < 0.7), int(rng.choice((-1, 0, 1)))
    example, question = (int(chance) for chance in rng.random(2) < 0.4)
    others = [name for name in TOPICS if name != topic]
    _, advice, examples, questions = TOPICS[topic if on_topic else others[rng.integers(len(others))]]
    parts = [_one(OPENINGS[tone], rng)] if rng.random() < 0.85 or tone else []
    parts += [advice[i] for i in rng.permutation(len(advice))[: rng.integers(1, 5)]]
    if example:
        parts.append(f"For example, {_one(examples, rng).format(rng.integers(3, 60))}.")
    if question:
        parts.append(_one(questions, rng))
    if rng.random() < 0.4:
        parts.append(_one(CLOSINGS[tone], rng))
    text = " ".join(parts)
    return text, {
        "on_topic": on_topic,
        "tone": tone,
        "example": example,
        "question": question,
        "words": len(text.split()),
    }


def _one(parts: tuple[str, ...], rng: np.random.Generator) -> str:
    return parts[rng.integers(len(parts))]
