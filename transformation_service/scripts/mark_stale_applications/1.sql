-- /// script
-- summary = "Marks applications that no job has transformed for some days before the slot, and counts them by category"
-- limits = {rows = 1000000, seconds = 120}
-- [parameters.days]
-- type = "integer"
-- required = true
-- minimum = 1
-- maximum = 3650
-- ///
UPDATE application_record
SET marks = marks || jsonb_build_object('stale', 'not transformed for ' || :days || ' days'),
    mark_reason = concat_ws('; ', mark_reason, 'stale: not transformed for ' || :days || ' days')
WHERE coalesce(transformed_at, created_at) < :slot - interval '1 day' * :days AND marks ->> 'stale' IS NULL;

SELECT category, count(*) AS stale
FROM application_record
WHERE marks ->> 'stale' IS NOT NULL
GROUP BY category
ORDER BY stale DESC, category
