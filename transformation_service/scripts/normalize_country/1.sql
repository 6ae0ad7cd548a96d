-- /// script
-- summary = "Country names of users without blanks around them, in capitals when they are two-letter codes"
-- limits = {rows = 1000000, seconds = 120}
-- ///
UPDATE user_record
SET country = CASE WHEN length(trim(country)) = 2 THEN upper(trim(country)) ELSE nullif(trim(country), '') END
WHERE country IS DISTINCT FROM
      CASE WHEN length(trim(country)) = 2 THEN upper(trim(country)) ELSE nullif(trim(country), '') END
