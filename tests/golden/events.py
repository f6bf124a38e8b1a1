"""TensorBoard's event files: one written by TensorBoard's own writer, and a check that it reads those of Halfbyte."""

import json
import pathlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

TAGS = {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/learning_rate": "learning_rate",
        "train/epoch": "epoch", "train/tokens_per_second": "tokens_per_second", "eval/loss": "eval_loss"}


def main(folder: pathlib.Path):
    """A file with every kind of event that Halfbyte writes, at a fixed time."""
    folder.mkdir(exist_ok=True)
    value = Summary.Value
    events = [
        Event(wall_time=1.5, file_version="brain.Event:2"),
        Event(wall_time=1.5, step=8, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=1.5, step=8, summary=Summary(value=[value(tag="train/loss", simple_value=2.25),
                                                           value(tag="train/epoch", simple_value=0.0)])),
        Event(wall_time=1.5, step=300, summary=Summary(value=[value(tag="eval/loss", simple_value=1e-3)])),
    ]
    with open(folder / "events.bin", "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))


def check(run: pathlib.Path) -> bool:
    """Whether TensorBoard reads from a run's event file what the run wrote into metrics.jsonl."""
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    good = True
    for tag, key in TAGS.items():
        # Evaluations are lines of their own, which also say the epoch.
        of_kind = [line for line in lines if ("loss" in line) == tag.startswith("train/")]
        expected = [(line["step"], line[key]) for line in of_kind]
        found = [(event.step, event.value) for event in accumulator.Scalars(tag)]
        same = len(found) == len(expected) > 0 and all(
            a[0] == b[0] and abs(a[1] - b[1]) <= 1e-6 * abs(b[1]) for a, b in zip(found, expected))
        print(f"TensorBoard, {tag}: {len(found)} values, {'as recorded' if same else 'not as recorded'}")
        good &= same
    return good
