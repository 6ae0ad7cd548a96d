-- /// script
-- summary = "Countries of users as ISO 3166-1 alpha-2 codes where the name is known; all others without blanks around them"
-- limits = {rows = 1000000, seconds = 120}
-- [parameters.unknown]
-- type = "string"
-- default = "keep"
-- choices = ["keep", "clear"]
-- ///
WITH name (spelling, code) AS (
    VALUES ('austria', 'AT'), ('österreich', 'AT'), ('france', 'FR'), ('germany', 'DE'), ('deutschland', 'DE'),
           ('great britain', 'GB'), ('italy', 'IT'), ('italia', 'IT'), ('netherlands', 'NL'), ('poland', 'PL'),
           ('spain', 'ES'), ('españa', 'ES'), ('sweden', 'SE'), ('switzerland', 'CH'), ('schweiz', 'CH'), ('u.k.', 'GB'),
           ('u.s.', 'US'), ('uk', 'GB'), ('united kingdom', 'GB'), ('united states', 'US'), ('us', 'US'), ('usa', 'US'),
           ('united states of america', 'US')
), wanted AS (
    SELECT record.id,
           coalesce(
               name.code,
               CASE WHEN length(trim(record.country)) = 2 THEN upper(trim(record.country)) END,
               CASE WHEN :unknown = 'keep' THEN nullif(trim(record.country), '') END
           ) AS country
    FROM user_record AS record
    LEFT JOIN name ON name.spelling = lower(trim(record.country))
    WHERE record.country IS NOT NULL
)
UPDATE user_record
SET country = wanted.country
FROM wanted
WHERE user_record.id = wanted.id AND user_record.country IS DISTINCT FROM wanted.country
