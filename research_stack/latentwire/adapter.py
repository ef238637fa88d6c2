"""What a reader makes of its latents first: states of the wire's latents, and input embeddings made of them.

Shapes: B rows, M latents, d dimensions of a latent, P = M * expand positions, H width of the states, D width of the
reader.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from research_stack.backbones.attention import StandardAttention
from research_stack.backbones.norm import RMSNorm
from research_stack.backbones.transformer import Attention, Block, SwiGLU
from research_stack.latentwire.reader import FrozenReader
from research_stack.require import require
from research_stack.streams import generator

HINTS = 33  # an answer length in tokens, 0 to 32


class Adapter(nn.Module):
    """Numbers from the wire to states of each position, and to vectors as large as the reader's embeddings.

    - latents, numbers: M and d at most. dim, layers, heads: of the blocks in which the positions see one another.
    - expand: positions of the reader to a latent.
    - hint: whether an answer length comes with the latents.
    - seed, name: of the initial weights; the name is that of the reader in the config.
    """

    def __init__(
        self,
        reader: FrozenReader,
        num_latents: int,
        latent_dim: int,
        dim: int,
        layers: int,
        heads: int,
        positions_per_latent: int,
        length_hint: bool,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        require(positions_per_latent >= 1, f"positions_per_latent={positions_per_latent} must be at least 1")
        require(positions_per_latent <= 10_000, f"positions_per_latent={positions_per_latent} must be at most 10,000")
        require(heads >= 1 and dim >= 1 and dim % heads == 0, f"heads={heads} must divide dim={dim}")
        self.dim, self.positions_per_latent = dim, positions_per_latent
        self.enter = nn.Linear(latent_dim, positions_per_latent * dim)
        self.position_PH = nn.Parameter(torch.empty(num_latents * positions_per_latent, dim))
        self.length_hint = nn.Embedding(HINTS, dim) if length_hint else None
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, heads, heads, False), SwiGLU(dim, -(-8 * dim // 96) * 32), 0.0, 0)
            for _ in range(layers)
        )
        self.norm = RMSNorm(dim)
        self.leave = nn.Linear(dim, reader.hidden_size)
        mean_D, size = embedding_mean_and_std(reader)
        self.mean_D = nn.Parameter(mean_D)
        self.size = nn.Parameter(size.unsqueeze(0))  # one number in a row: shards are cut along rows
        stream = generator(seed, "adapter", name)
        for key, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.5 if key == "position_PH" else 0.02 if key.startswith("hint") else parameter.shape[1] ** -0.5
                nn.init.normal_(
                    parameter, std=std * (0.3 if ".out." in key or ".down." in key else 1.0), generator=stream
                )
        nn.init.zeros_(self.enter.bias)
        nn.init.zeros_(self.leave.bias)

    def forward(self, latents_BMd: Tensor, index_M: Tensor, hint_B: Tensor | None = None) -> Tensor:
        """States (B, P, H).

        - index_M: which latents these are. hint_B: int64, a length in tokens; longer ones count as the longest.
        """
        position_PH = self.position_PH.unflatten(0, (-1, self.positions_per_latent))[index_M].flatten(0, 1)
        x_BPH = self.enter(latents_BMd).unflatten(-1, (self.positions_per_latent, self.dim)).flatten(1, 2) + position_PH
        if self.length_hint is not None and hint_B is not None:
            x_BPH = x_BPH + self.length_hint(hint_B.clamp(0, HINTS - 1)).unsqueeze(1)
        for index, block in enumerate(self.blocks):
            x_BPH = block(x_BPH, None, StandardAttention(), None, index)
        return self.norm(x_BPH)

    def vectors(self, states_BPH: Tensor) -> Tensor:
        """Input embeddings (B, P, D): at the start with the mean of the reader's own and about their spread."""
        return self.mean_D + self.size * self.leave(states_BPH)


@torch.no_grad()
def embedding_mean_and_std(reader: FrozenReader) -> tuple[Tensor, Tensor]:
    """(mean (D,), standard deviation ()) of the reader's input embeddings over its tokens and dimensions, on CPU."""
    table_VD = reader.embeddings.weight[: len(reader.tokenizer)].float()
    return table_VD.mean(0).cpu(), (table_VD - table_VD.mean(0)).square().mean().sqrt().cpu()
