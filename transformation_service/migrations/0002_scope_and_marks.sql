-- Work on the first records only; marks by rule, so that rule sets that run side by side keep each other's.

ALTER TABLE transformation_job ADD COLUMN max_records bigint CHECK (max_records > 0);

-- A request is compared with its job now. Nothing writes the column any more; older releases did.
ALTER TABLE transformation_request ALTER COLUMN body_hash DROP NOT NULL;

ALTER TABLE user_record ADD COLUMN marks jsonb NOT NULL DEFAULT '{}';
ALTER TABLE application_record ADD COLUMN marks jsonb NOT NULL DEFAULT '{}';
ALTER TABLE discovery_metadata_record ADD COLUMN marks jsonb NOT NULL DEFAULT '{}';
