"A table in a notebook that a test makes: read it, and store it anew."

import json
from dataclasses import dataclass
from pathlib import Path

END = "\n<!-- end -->"


@dataclass(frozen=True)
class StoredTable:
    notebook: Path
    writer: str  # the test that makes it, from the project's root

    @property
    def begin(self) -> str:
        return f"<!-- written by {self.writer} -->\n"

    def read(self) -> str:
        cells = ["".join(cell["source"]) for cell in json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]]
        return next(cell.split(self.begin)[1].split(END)[0] for cell in cells if self.begin in cell)

    def write(self, table: str) -> None:
        notebook = json.loads(self.notebook.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if self.begin in source:
                before, after = source.split(self.begin)[0], source.split(END)[1]
                cell["source"] = (before + self.begin + table + END + after).splitlines(keepends=True)
        self.notebook.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
