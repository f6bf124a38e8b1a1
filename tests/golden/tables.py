"""Parquet files as pyarrow writes them, for the reader: nested lists, nulls, and the compressions that are in use."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

TALKS = [
    [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An animal."}],
    [{"role": "user", "content": "Wetter in Zürich?"},
     {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]},
     {"role": "tool", "content": "12 °C"}, {"role": "assistant", "content": "12 °C."}],
]
CALL = pa.struct([("function", pa.struct([("name", pa.string()), ("arguments", pa.string())]))])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(CALL))])


def main(folder: pathlib.Path):
    folder.mkdir(exist_ok=True)
    talks = pa.table({"messages": pa.array(TALKS, pa.list_(MESSAGE)), "id": [7, 8], "when": [1.5, None]})
    pq.write_table(talks, folder / "messages.parquet")
    tasks = pa.table({"instruction": [f"Count to {n}." for n in range(5)], "input": ["", None, "up", "", "down"],
                      "output": [" ".join(map(str, range(n + 1))) for n in range(5)], "text": ["unused"] * 5})
    for compression in ["none", "gzip", "lz4", "zstd", "brotli"]:
        pq.write_table(tasks, folder / f"alpaca-{compression}.parquet", compression=compression, row_group_size=2)


if __name__ == "__main__":
    main(pathlib.Path(__file__).parent / "data")
