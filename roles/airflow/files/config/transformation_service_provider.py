"""Airflow's connection type ``transformation_service``: a form of its own in the UI, and the hook of the live release.

By the folder ``transformation_service_provider-1.dist-info`` beside this file, Airflow finds it as a provider. The form
is read from :func:`provider_info` alone. The hook is part of a release, so it is looked up when somebody uses the
connection (``airflow connections test``), never when the form is shown.
"""

import sys
from pathlib import Path
from typing import Any


def provider_info() -> dict[str, Any]:
    """Return what ``airflow/provider_info.schema.json`` asks for."""
    return {
        "package-name": "transformation-service-provider",
        "name": "TransformationService",
        "description": "Connections to a TransformationService",
        "connection-types": [
            {
                "connection-type": "transformation_service",
                "hook-name": "TransformationService",
                "hook-class-name": f"{__name__}.TransformationServiceHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login"],
                    "relabeling": {"schema": "Scheme", "password": "Token"},
                    "placeholders": {"schema": "http", "host": "service-1", "port": "5000"},
                },
                "conn-fields": {
                    "timeout": {
                        "label": "Timeout",
                        "description": "Seconds that the service may take to answer a request; 30 if empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "verify": {
                        "label": "CA file",
                        "description": "For https: path of a file with certificate authorities on the workers.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
    }


def __getattr__(name: str) -> Any:
    """Find the hook: in the release that a task runs, else in the live one."""
    if name != "TransformationServiceHook":
        raise AttributeError(name)
    live = str(Path(__file__).parents[1] / "current")
    if live not in sys.path:
        sys.path.append(live)  # at the end: a task's own release comes first
    from plugins.hooks.transformation_service import TransformationServiceHook

    return TransformationServiceHook
