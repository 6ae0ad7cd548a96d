-- Runs of scripts. The role that executes them sees none of these tables; it calls one function.

-- A published version keeps its meaning: the first start with a file records it.
CREATE TABLE script_version (
    script       text        NOT NULL,
    version      integer     NOT NULL,
    checksum     text        NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (script, version)
);

CREATE TABLE script_run (
    id          uuid PRIMARY KEY,
    -- The same work asked for under two keys is one run.
    work_hash   text        NOT NULL UNIQUE,
    kind        text        NOT NULL CHECK (kind IN ('static', 'dynamic')),
    script      text,
    version     integer,
    -- What is executed, and its SHA-256: the whole file of a static script, the SQL of a dynamic one.
    source      text        NOT NULL,
    checksum    text        NOT NULL,
    parameters  jsonb       NOT NULL,
    slot        timestamptz NOT NULL,
    limits      jsonb       NOT NULL,
    state       text        NOT NULL DEFAULT 'queued'
                CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    -- Known to the process that executes the run, and new with each attempt.
    claim_token uuid,
    attempts    integer     NOT NULL DEFAULT 0,
    result      jsonb,
    error       jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz,
    CHECK ((kind = 'static') = (script IS NOT NULL)),
    CHECK ((script IS NULL) = (version IS NULL))
);
CREATE INDEX script_run_unfinished ON script_run (created_at, id) WHERE state IN ('queued', 'running');

CREATE TABLE script_request (
    idempotency_key text PRIMARY KEY,
    run_id          uuid        NOT NULL REFERENCES script_run (id),
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- The one thing that the scripts' role may do besides its work: confirm the run whose token it was given, in the
-- transaction that holds the effects. False when the run is no longer this attempt's.
CREATE FUNCTION confirm_script_run(run uuid, token uuid, outcome jsonb) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH confirmed AS (
        UPDATE public.script_run
        SET state = 'succeeded', result = outcome, error = NULL, finished_at = now(), claim_token = NULL
        WHERE id = run AND claim_token = token AND state = 'running'
        RETURNING id
    )
    SELECT count(*) = 1 FROM confirmed
$$;
REVOKE ALL ON FUNCTION confirm_script_run(uuid, uuid, jsonb) FROM PUBLIC;
