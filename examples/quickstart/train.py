"""A small GPT learns to write Python, character by character, from the standard library's own source.

It may be killed at any moment and started again: the three lines marked `hooks` bring it to the same last bit.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from trainer_hooks import Session  # hooks

STEPS = int(os.environ.get("STEPS", "300"))
BATCH, CONTEXT, WIDTH, HEADS, LAYERS = 16, 80, 128, 4, 3
MAX_CHARACTERS = 400_000


class Text(Dataset[Tensor]):
    """Overlapping windows of `CONTEXT + 1` characters; characters outside ASCII are one unknown."""

    def __init__(self) -> None:
        library = Path(sysconfig.get_path("stdlib"))
        text = ""
        for path in sorted(library.glob("*.py")):
            text += path.read_text(encoding="utf-8", errors="replace")
            if len(text) > MAX_CHARACTERS:
                break
        self.characters = torch.tensor([min(ord(character), 127) for character in text[:MAX_CHARACTERS]])

    def __len__(self) -> int:
        return (len(self.characters) - 1) // (CONTEXT // 2) - 2

    def __getitem__(self, index: int) -> Tensor:
        start = index * (CONTEXT // 2)
        return self.characters[start : start + CONTEXT + 1]


class Block(nn.Module):
    """Attention to what came before, then a perceptron; both add to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_qkv, self.from_heads = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, stream: Tensor) -> Tensor:  # [batch, length, WIDTH]
        batch, length, _ = stream.shape
        qkv = self.to_qkv(self.before_attention(stream)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [batch, HEADS, length, WIDTH / HEADS]
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.from_heads(heads.transpose(1, 2).reshape(batch, length, WIDTH))
        return stream + self.mlp(self.before_mlp(stream))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.to_next = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128))

    def forward(self, text: Tensor) -> Tensor:
        stream = self.characters(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return self.to_next(self.blocks(self.dropout(stream)))  # [batch, length, 128] logits


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # how a sum is split among threads decides its last bit
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA wants for the next line
    torch.use_deterministic_algorithms(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Gpt().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    loader = DataLoader(Text(), batch_size=BATCH, shuffle=True, drop_last=True)

    session = Session(model=model, optimizer=optimizer, scheduler=scheduler)  # hooks
    for batch in session(loader, steps=STEPS):  # hooks
        text = batch.to(device)
        logits = model(text[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        session.log(loss=loss)

    # measured on fixed text, so that it is the same however the training was cut into attempts
    model.eval()
    with torch.no_grad():
        text = torch.stack([loader.dataset[index] for index in range(0, len(loader.dataset), 100)]).to(device)
        final = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).item()
    session.outcome("final_loss", final)
    print(f"final loss {final:.9f} (hex {final.hex()})")


if __name__ == "__main__":
    main()
