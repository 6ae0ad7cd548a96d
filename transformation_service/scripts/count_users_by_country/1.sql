-- /// script
-- summary = "Users by country, the most frequent first"
-- [parameters.at_least]
-- type = "integer"
-- default = 1
-- minimum = 1
-- ///
SELECT country, count(*) AS users, count(*) FILTER (WHERE mark_reason IS NOT NULL) AS marked
FROM user_record
GROUP BY country
HAVING count(*) >= :at_least
ORDER BY users DESC, country
