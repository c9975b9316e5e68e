"""Reads with ypy-websocket 0.12.4 what Rust has written, and writes something behind it."""

import asyncio
import sys
from pathlib import Path

import y_py as Y
from ypy_websocket.ystore import FileYStore, SQLiteYStore, YDocNotFound


async def main(folder: Path) -> None:
    lines = (folder / "expected.tsv").read_text().splitlines()
    for line in lines:
        name, expected, codec = line.split("\t")
        assert codec == "plain"

        class Database(SQLiteYStore):
            db_path = str(folder / name)

        def open_room(room: str) -> FileYStore | SQLiteYStore:
            if name.endswith(".y"):
                return FileYStore(str((folder / name).with_stem(room)), metadata_callback=lambda: b"python")
            return Database(room, metadata_callback=lambda: b"python")

        store = open_room("room-1")
        await store.start()
        ydoc = Y.YDoc()
        await store.apply_updates(ydoc)
        text = ydoc.get_text("text")
        assert str(text) == expected, f"{name}: {text} is not {expected}"
        before = Y.encode_state_vector(ydoc)
        with ydoc.begin_transaction() as transaction:
            text.extend(transaction, " and Python")
        await store.write(Y.encode_state_as_update(ydoc, before))
        again = Y.YDoc()
        await store.apply_updates(again)
        assert str(again.get_text("text")) == expected + " and Python", name
        missing = open_room("nobody")
        await missing.start()
        try:
            await missing.apply_updates(Y.YDoc())
            raise AssertionError("a room that nobody has written has updates")
        except YDocNotFound:
            pass
    assert not list(folder.glob("**/*(*")), "something was moved away as of another version"
    print(f"ypy-websocket read {len(lines)} databases and files")


asyncio.run(main(Path(sys.argv[1])))
