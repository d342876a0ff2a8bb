"""A trained run in a few lines of Python.

    import coordvlm

    model = coordvlm.load("latest")                       # or a run folder, or a checkpoint folder
    answer = model.ground("photo.jpg", "the cup left of the plate")
    answer.box, answer.boxes[0].score, answer.says_none   # source pixels, xyxy

    for found in coordvlm.load("outputs/train/<run>").detect("photo.jpg").boxes:
        print(found.desc, found.box, found.score)

    dots = coordvlm.load("outputs/train/<run>").count("photo.jpg", "red dot")
    dots.count, dots.finished, [(p.x, p.y) for p in dots.points]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from PIL import Image

    from coordvlm.build.predictor import Predictor
    from coordvlm.sequence.count_answer import CountAnswer
    from coordvlm.sequence.postprocess import Answer


def load(
    run: str | Path, *, device: str = "auto", precision: str = "auto", min_score: float = 0.0, classes: Sequence[str] = (),
    decode: Mapping[str, Any] | None = None,
) -> Model:
    """Load a trained run.

    Args:
        run: a run folder, a checkpoint folder, or ``latest``.
        device: ``auto``, ``cpu``, ``gpu`` or ``mps``. precision: ``auto`` is the run's on a GPU, else ``32-true``.
        min_score: boxes that score less are left out, and counted in ``Answer.rejected``.
        classes: names for the prompt of a run that was trained with class names in its prompt.
        decode: settings of decoding that replace the run's, such as ``{"retries": 2}``.
    Raises:
        ConfigError: no such run, or a device that is not here. ContractError: a checkpoint that does not fit its configuration.
    """
    from coordvlm.build.predictor import open_run

    predictor, ref = open_run(run, device=device, precision=precision, classes=tuple(classes), decode=decode or {})
    return Model(predictor, name=f"run={ref.run_dir}", min_score=min_score)


class Model:
    """Answers about images, given as a path or a PIL image. Boxes (xyxy) and points are in pixels of the displayed image (EXIF applied).

    Args:
        name: of the run, for errors.
    """

    def __init__(self, predictor: Predictor, *, name: str, min_score: float) -> None:
        self.predictor, self.name, self.min_score = predictor, name, min_score

    @overload
    def ground(self, image: str | Path | Image.Image, phrase: str) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def ground(self, image: str | Path | Image.Image, phrase: Sequence[str]) -> list[Answer]: ...

    def ground(self, image: str | Path | Image.Image, phrase: str | Sequence[str]) -> Answer | list[Answer]:
        """Where the one thing is that a phrase names; for several phrases one answer each, in their order.

        Raises:
            ConfigError: the run was trained to detect, or a phrase is blank. DataError: the image cannot be read.
        """
        self.predictor.require("ground", who=self.name)
        asked = [phrase] if isinstance(phrase, str) else list(phrase)
        found = self._answers(image, asked)
        return found[0] if isinstance(phrase, str) else found

    def detect(self, image: str | Path | Image.Image) -> Answer:
        """Every object the model names.

        Raises:
            ConfigError: the run was trained to ground phrases. DataError: the image cannot be read.
        """
        self.predictor.require("detect", who=self.name)
        return self._answers(image, [None])[0]

    @overload
    def count(self, image: str | Path | Image.Image, phrase: str) -> CountAnswer: ...  # type: ignore[overload-overlap]

    @overload
    def count(self, image: str | Path | Image.Image, phrase: Sequence[str]) -> list[CountAnswer]: ...

    def count(self, image: str | Path | Image.Image, phrase: str | Sequence[str]) -> CountAnswer | list[CountAnswer]:
        """How many there are of what a phrase names, and where; for several phrases one count each, in their order.

        Raises:
            ConfigError: the run was not trained to count, or a phrase is blank. DataError: the image cannot be read.
        """
        self.predictor.require("count", who=self.name)
        asked = [phrase] if isinstance(phrase, str) else list(phrase)
        found: list[CountAnswer] = self._asked(image, asked, self.predictor.count)
        return found[0] if isinstance(phrase, str) else found

    def _answers(self, image: str | Path | Image.Image, phrases: Sequence[str | None]) -> list[Answer]:
        from coordvlm.sequence.postprocess import finish

        found = self._asked(image, phrases, self.predictor.answer)
        asked = [p if p is None else p.strip() for p in phrases]
        return [finish(p, phrase=phrase, min_score=self.min_score) for p, phrase in zip(found, asked, strict=True)]

    def _asked(
        self, image: str | Path | Image.Image, phrases: Sequence[str | None], ask: Callable[[Sequence[Any]], list[Any]]
    ) -> list[Any]:
        """What the predictor says, in order; ask: a batch of requests -> one answer each.

        Raises:
            ConfigError: a blank phrase. DataError: the first request that could not be answered.
        """
        from coordvlm.utils.errors import ConfigError, DataError

        if any(p is not None and not p.strip() for p in phrases):
            raise ConfigError("a phrase must have at least one word")
        requests = self.predictor.requests
        opened = Path(image).expanduser() if isinstance(image, str | Path) else image
        name, where = (opened.name, str(opened)) if isinstance(opened, Path) else ("image", "image in memory")
        frame = requests.frame(opened, where=where)
        encoded = [requests.encode(frame, p if p is None else p.strip(), name=name, where=where) for p in phrases]
        answers: list[Any] = []
        while encoded:
            size = self.predictor.batch_size(encoded[0])
            part, encoded = encoded[:size], encoded[size:]
            for found in ask(part):
                if isinstance(found, DataError):
                    raise found
                answers.append(found)
        return answers
