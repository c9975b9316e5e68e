"""Reads with pycrdt-store what Rust has written, and writes something behind it."""

import sys
import zlib
from pathlib import Path

import anyio
from pycrdt import Doc, Text
from pycrdt.store import FileYStore, SQLiteYStore


def text_of(doc: Doc) -> str:
    return str(doc.get("text", type=Text))


async def main(folder: Path) -> None:
    lines = (folder / "expected.tsv").read_text().splitlines()
    for line in lines:
        name, expected, codec = line.split("\t")

        class Database(SQLiteYStore):
            db_path = str(folder / name)
            checkpoint_interval = None

        store: FileYStore | SQLiteYStore
        if name.endswith(".y"):
            store = FileYStore(str(folder / name), metadata_callback=lambda: b"python")
        else:
            store = Database("room-1", metadata_callback=lambda: b"python")
            if codec == "zlib":
                store.register_compression_callbacks(zlib.compress, zlib.decompress)
        async with store:
            # Checkpoint and tail, as Jupyter loads it.
            doc: Doc = Doc()
            await store.apply_updates(doc)
            assert text_of(doc) == expected, f"{name}: {text_of(doc)} is not {expected}"
            # Record for record.
            records: Doc = Doc()
            async for update, metadata, timestamp in store.read():
                assert isinstance(metadata, bytes) and timestamp > 1.6e9, name
                records.apply_update(update)
            assert text_of(records) == expected, name
            before = doc.get_state()
            doc.get("text", type=Text).insert(len(expected), " and Python")
            await store.write(doc.get_update(before))
            again: Doc = Doc()
            async for update, _, _ in store.read():
                again.apply_update(update)
            assert text_of(again) == expected + " and Python", name
    assert not list(folder.glob("**/*(*")), "something was moved away as of another version"
    print(f"pycrdt-store read {len(lines)} databases and files")


anyio.run(main, Path(sys.argv[1]))
