"""FAB's settings: users live in the metadata database. Managed by Ansible (role airflow)."""

from flask_appbuilder.const import AUTH_DB

AUTH_TYPE = AUTH_DB
WTF_CSRF_ENABLED = True
