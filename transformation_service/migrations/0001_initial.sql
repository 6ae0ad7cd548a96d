-- Entities, jobs and the ledger. Later files only add: a release must run on the schema of the next one.

CREATE TABLE user_record (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    full_name       text,
    email           text,
    phone           text,
    country         text,
    phone_extension text,
    duplicate_of    bigint,
    mark_reason     text,
    transform_count integer NOT NULL DEFAULT 0,
    transformed_at  timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);

CREATE TABLE application_record (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text,
    category        text,
    owner_email     text,
    version         text,
    duplicate_of    bigint,
    mark_reason     text,
    transform_count integer NOT NULL DEFAULT 0,
    transformed_at  timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);

CREATE TABLE discovery_metadata_record (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source          text,
    document        jsonb,
    metadata        jsonb,
    mark_reason     text,
    transform_count integer NOT NULL DEFAULT 0,
    transformed_at  timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);

-- Blocking keys of rule deduplicate: records that share one are compared, others never are.
CREATE TABLE record_match_key (
    entity_type text   NOT NULL,
    match_key   text   NOT NULL,
    record_id   bigint NOT NULL,
    PRIMARY KEY (entity_type, match_key, record_id)
);
CREATE INDEX record_match_key_record ON record_match_key (entity_type, record_id);

CREATE TABLE transformation_job (
    id               uuid PRIMARY KEY,
    entity_type      text        NOT NULL,
    rules            text[]      NOT NULL CHECK (cardinality(rules) > 0),
    rule_set_version text        NOT NULL,
    batch_size       integer     NOT NULL CHECK (batch_size > 0),
    slot             timestamptz NOT NULL,
    state            text        NOT NULL DEFAULT 'queued'
                     CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    max_record_id    bigint      NOT NULL,
    records_total    bigint      NOT NULL,
    batches_total    integer     NOT NULL,
    batches_done     integer     NOT NULL DEFAULT 0,
    transformed      bigint      NOT NULL DEFAULT 0,
    marked           bigint      NOT NULL DEFAULT 0,
    last_record_id   bigint      NOT NULL DEFAULT 0,
    error            jsonb,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    finished_at      timestamptz,
    -- The same work asked for under two keys is still one job.
    UNIQUE (entity_type, slot, rule_set_version)
);
CREATE INDEX transformation_job_unfinished ON transformation_job (created_at, id) WHERE state IN ('queued', 'running');

CREATE TABLE transformation_request (
    idempotency_key text PRIMARY KEY,
    body_hash       text        NOT NULL,
    job_id          uuid        NOT NULL REFERENCES transformation_job (id),
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE transformation_batch (
    batch_key    text PRIMARY KEY,
    job_id       uuid        NOT NULL REFERENCES transformation_job (id),
    batch_number integer     NOT NULL,
    first_id     bigint      NOT NULL,
    last_id      bigint      NOT NULL,
    transformed  integer     NOT NULL,
    marked       integer     NOT NULL,
    seconds      double precision NOT NULL,
    finished_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (job_id, batch_number)
);

CREATE TABLE transformation_record (
    job_id           uuid        NOT NULL REFERENCES transformation_job (id),
    entity_type      text        NOT NULL,
    slot             timestamptz NOT NULL,
    rule_set_version text        NOT NULL,
    record_id        bigint      NOT NULL,
    batch_number     integer     NOT NULL,
    outcome          text        NOT NULL CHECK (outcome IN ('transformed', 'marked')),
    reason           text,
    UNIQUE (entity_type, slot, rule_set_version, record_id),
    CHECK ((outcome = 'marked') = (reason IS NOT NULL))
);
CREATE INDEX transformation_record_job ON transformation_record (job_id, batch_number);
