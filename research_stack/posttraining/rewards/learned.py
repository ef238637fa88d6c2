"""A finished reward run as a reward: what a reply would earn, as the run has learned it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from research_stack.config.build import build
from research_stack.records.files import read_json
from research_stack.records.run_folder import RunFolder

if TYPE_CHECKING:
    from research_stack.backbones.sentence import SentenceEncoder
    from research_stack.posttraining.reward_model import RewardModel

METHOD = "research_stack.posttraining.reward_model.RewardModel"


class Learned:
    """Engagement as a finished run of experiment=reward predicts it.

    - run: its folder. Encoder and regressor are built from its config.yaml, weights come from its last checkpoint.
    - unit: `standardised`, in standard deviations from the mean of the run's training side, or `log`, log(1 +
      engagement).
    - device: where regressor and encoder run, as torch names it.
    """

    name = "learned"

    def __init__(self, run: str, unit: Literal["standardised", "log"] = "standardised", device: str = "cpu") -> None:
        self.run, self.unit, self.device = run, unit, device

    def check(self) -> None:
        """Raise ValueError or OSError in one line for a folder that is no trained reward run, and for an encoder that
        is not there.
        """
        self._config()
        if not self._checkpoint.is_file():
            raise ValueError(f"run={self.run} has no checkpoints/last.ckpt: the run has not been trained")
        self._encoder().check()

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """(n,) float64. Raises ValueError or OSError as `check` does, and for a damaged checkpoint or another
        encoder.
        """
        import torch

        if not len(prompts):
            return np.zeros(0)
        method, encoder = self._loaded
        texts = list(dict.fromkeys([*prompts, *completions]))  # prompts of a group repeat
        indices = {text: at for at, text in enumerate(texts)}
        texts_UD = encoder.embed(texts)
        pair_n2 = np.array(
            [[indices[prompt], indices[text]] for prompt, text in zip(prompts, completions, strict=True)]
        )
        features_nF = torch.from_numpy(texts_UD[pair_n2].reshape(len(pair_n2), -1)).to(self.device)
        with torch.no_grad():
            values_n = method.model(features_nF) if self.unit == "standardised" else method.predict(features_nF)
        return values_n.double().cpu().numpy()

    @cached_property
    def _loaded(self) -> tuple[RewardModel, SentenceEncoder]:
        from research_stack.posttraining.reward_model import RewardModel
        from research_stack.training.checkpoint import load_checkpoint
        from research_stack.training.optimization import Optimization

        self.check()
        config, encoder = self._config(), self._encoder()
        self._refuse_another(encoder)
        model = build(config["model"], "model", inputs=2 * encoder.dim, seed=0)
        method = RewardModel(model, Optimization(), seed=0)
        try:
            method.load_state_dict(load_checkpoint(self._checkpoint)["state_dict"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"run={self.run}: the checkpoint is of another model ({str(error).splitlines()[-1].strip()})"
            ) from error
        return method.eval().requires_grad_(False).to(self.device), encoder

    def _config(self) -> Mapping[str, Any]:
        config = RunFolder(self.run).read_config()
        target = (config.get("method") or {}).get("_target_") if isinstance(config.get("method"), Mapping) else None
        if target != METHOD:
            raise ValueError(
                f"run={self.run} is no reward run: its method is {target or 'none'}; train one with experiment=reward"
            )
        return config

    def _encoder(self) -> SentenceEncoder:
        return build(self._config()["data"]["encoder"], "data.encoder", device=self.device)

    def _refuse_another(self, encoder: SentenceEncoder) -> None:
        """Raise ValueError when the encoder's weights are not those that the run was trained with."""
        record = RunFolder(self.run).run_json
        trained = (read_json(record).get("data") or {}).get("encoder") if record.is_file() else None
        if trained not in (None, encoder.fingerprint()):
            raise ValueError(
                f"run={self.run} was trained on embeddings of another encoder ({trained} then, {encoder.fingerprint()}"
                " now)"
            )

    @property
    def _checkpoint(self) -> Any:
        return RunFolder(self.run).checkpoints / "last.ckpt"
