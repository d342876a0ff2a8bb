"""What the stages hand to each other. Every arrow of the pipeline is one frozen dataclass documented here, once.

    data -Sample-> sequence -Encoded, Batch-> models -ModelOutput-> losses -TermOutput-> optimiser
                                             models -Decoded-> sequence -Prediction-> metrics -Evaluation-> reports
"""

from coordvlm.contracts.batch import COORD, END, MARKER, TEXT, Batch, Encoded, Question, Window
from coordvlm.contracts.clip import Clip, ClipBatch, ClipTruth, EncodedClip
from coordvlm.contracts.contract import Contract, ResizeRule
from coordvlm.contracts.evaluation import Evaluation, Interval, MatchedPairs
from coordvlm.contracts.output import ModelOutput, TermOutput
from coordvlm.contracts.prediction import Alternative, ArmAnswer, Asked, Decoded, Prediction, Record, SlotReadout
from coordvlm.contracts.protocols import CountFn, Encoder, Grammar, Parser
from coordvlm.contracts.sample import TARGET, GroundTruth, Object, PhraseTruth, PointTruth, Sample

__all__ = [
    "COORD", "END", "MARKER", "TARGET", "TEXT", "Alternative", "ArmAnswer", "Asked", "Batch", "Clip", "ClipBatch", "ClipTruth", "Contract",
    "CountFn", "Decoded", "Encoded", "EncodedClip", "Encoder", "Evaluation", "Grammar", "GroundTruth", "Interval", "MatchedPairs",
    "ModelOutput", "Object", "Parser", "PhraseTruth", "PointTruth", "Prediction", "Question", "Record", "ResizeRule", "Sample",
    "SlotReadout", "TermOutput", "Window",
]
