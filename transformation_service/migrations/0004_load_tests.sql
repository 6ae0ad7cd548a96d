-- Which records a load test has added: those with one of these creation times.
CREATE TABLE load_test_records (created_at timestamptz PRIMARY KEY DEFAULT now());
