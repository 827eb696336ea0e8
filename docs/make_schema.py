"""Write docs/request.schema.json from the records: `PYTHONPATH=. python docs/make_schema.py`. A test compares them."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from causal_tracer.request.records import StoredRequest

if __name__ == "__main__":
    schema = json.dumps(TypeAdapter(StoredRequest).json_schema(), indent=1, ensure_ascii=False)
    Path(__file__).with_name("request.schema.json").write_text(schema + "\n", encoding="utf-8")
