"""Policies small enough to be written out token by token, their texts, and what a trainer gives them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from research_stack.backbones.transformer import Transformer
from research_stack.data.tokenizers import specials_last

sys.path.append(str(Path(__file__).parents[1] / "backbones"))  # pretrained_models

LETTERS = "abcdefghi"
VOCAB = specials_last(len(LETTERS))


class Letters:
    """Ids 0 to 8 are the letters a to i; then mask, pad, end."""

    vocab = VOCAB

    def encode(self, text):
        return [LETTERS.index(letter) for letter in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(LETTERS[i] for i in map(int, ids) if i < len(LETTERS))


@pytest.fixture(autouse=True)
def one_thread():
    """A run takes all cores, and the process keeps them: tensors of a few numbers are slower for it, on a busy machine
    many times.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def codec():
    """Letters."""
    return Letters()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A saved Llama of a few thousand weights."""
    from pretrained_models import llama

    return str(llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def backbone(llama_folder):
    """Makes a causal model of the letters: `own` or `pretrained`; in float64 with weights that have an effect, unless
    `fresh`.
    """

    def make(kind="own", fresh=False, **options):
        if kind == "own":
            made = Transformer(
                VOCAB.size,
                **{"dim": 16, "layers": 2, "heads": 4, "causal": True, "max_length": 16, "seed": 3, **options},
            )
        else:
            from research_stack.backbones.pretrained import PretrainedCausal

            made = PretrainedCausal(VOCAB.size, llama_folder, **{"max_length": 32, **options})
        return made if fresh else shaken(made, 0.3 if kind == "own" else 0.05)

    return make


def shaken(module, scale):
    """The module in float64 with noise on what is trained."""
    noise = torch.Generator().manual_seed(5)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return module


@pytest.fixture
def alone():
    """Gives a module what it needs of a trainer of one device, at a step."""

    def attach(module, step=0, max_steps=10):
        module._trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=step, max_steps=max_steps)
        return module

    return attach


@pytest.fixture
def completions():
    """Makes (tokens (B, L), width (B,), made (B,)) of random texts with these widths and lengths, every completion
    closed by the end token.
    """

    def make(widths=(3, 1, 5, 2), lengths=(4, 6, 1, 3), padding=0, garbage=VOCAB.pad):
        draws, columns = (
            torch.Generator().manual_seed(1),
            max(w + m for w, m in zip(widths, lengths, strict=True)) + padding,
        )
        tokens = torch.full((len(widths), columns), garbage)
        for row, (width, made) in enumerate(zip(widths, lengths, strict=True)):
            tokens[row, : width + made] = torch.randint(VOCAB.n_real, (width + made,), generator=draws)
            tokens[row, width + made - 1] = VOCAB.end
        return tokens, torch.tensor(widths), torch.tensor(lengths)

    return make


@pytest.fixture
def naive_laws():
    """Of a model and completions: [(log p of each token, entropies)] text by text, each read alone, with the full
    log-softmax written out.
    """

    def of(model, tokens_BL, prompt_length_B, completion_length_B, temperature=1.0):
        allowed = [token for token in range(VOCAB.size) if token not in VOCAB.special or token == VOCAB.end]
        found = []
        for text, width, made in zip(
            tokens_BL.tolist(), prompt_length_B.tolist(), completion_length_B.tolist(), strict=True
        ):
            hidden_LD = model.read(torch.tensor([text[: width + made]]))[0]
            logits_LA = (hidden_LD @ model.unembedding.T)[:, allowed] / temperature
            law_LA = logits_LA - logits_LA.exp().sum(1, keepdim=True).log()
            here = [allowed.index(token) for token in text[width : width + made]]
            places = range(width - 1, width + made - 1)
            found.append(
                (
                    torch.stack([law_LA[p, t] for p, t in zip(places, here, strict=True)]),
                    torch.stack([-(law_LA[p].exp() * law_LA[p]).sum() for p in places]),
                )
            )
        return found

    return of


@pytest.fixture
def fit(tmp_path):
    """Trains a module on batches, one a step; gives what was logged at each step. `goes_on`: from its last
    checkpoint.
    """
    import lightning
    from torch.utils.data import DataLoader

    from research_stack.training.checkpoint import AtomicCheckpointIO, Checkpoints

    class Kept(lightning.Callback):
        def __init__(self):
            self.rows = []

        def on_train_batch_end(self, trainer, *arguments):
            self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def run(module, batches, steps=None, validation=None, goes_on=False, every=100, **options):
        kept, last = Kept(), tmp_path / "fit" / "checkpoints" / "last.ckpt"
        checks = {"val_check_interval": 1, "check_val_every_n_epoch": None} if validation else {"limit_val_batches": 0}
        trainer = lightning.Trainer(
            max_steps=steps or len(batches),
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[kept, Checkpoints(every=every)],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=tmp_path / "fit",
            **checks,
            **options,
        )
        loaders = [DataLoader(list(part), batch_size=None) for part in (batches, validation) if part]
        trainer.fit(module, *loaders, ckpt_path=str(last) if goes_on else None)
        return kept.rows

    return run
