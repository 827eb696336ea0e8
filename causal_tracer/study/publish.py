"""A study as a data set on the Hugging Face hub: its Parquet files, and a card that names them."""

from __future__ import annotations

from pathlib import Path

from causal_tracer.errors import StudyError
from causal_tracer.study.store import TABLES
from causal_tracer.study.stored import StoredStudy


def push_to_hub(study: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a study's tables, manifest and report to a data set of the hub, made if it is not there.

    Returns:
        The data set's address.

    Raises:
        StudyError: There is no study, it was not brought to an end, or the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    card = dataset_card(StoredStudy.open(study).model)
    if lacking := [f"{name}.parquet" for name in TABLES if not (study / f"{name}.parquet").exists()]:
        raise StudyError(
            f"The study in {str(study)!r} lacks {', '.join(lacking)}: it was not brought to an end. Run it again first."
        )
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id, repo_type="dataset")
        api.upload_folder(
            folder_path=str(study),
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=["*.parquet", "manifest.json", "report.html"],
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise StudyError(
            f"The hub did not take the study as {repo_id!r} ({error}). Check the name and your login."
        ) from error
    return f"https://huggingface.co/datasets/{repo_id}"


def dataset_card(model: str) -> str:
    """Return the card: one configuration for each table, so that `load_dataset(repo_id, "cells")` finds its file."""
    configurations = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in TABLES)
    return (
        f"---\ntags: [causal-tracing, interpretability]\nconfigs:\n{configurations}---\n\n"
        f"# Causal tracing study of {model}\n\n"
        "`cells`: one row per cell. `facts`: one row per fact, those left out too. `audit`: cells computed twice. "
        "`manifest.json`: how it was made. `report.html`: what it shows.\n"
    )
