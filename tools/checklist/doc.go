// Package checklist holds tools/e2e/checklist.md, the table of WAL-G's behaviours
// and the tests of each, against the tests there are. It has no code of its own:
// its test reads the table and every test file, and fails for a row that is
// missing or that names a test nobody wrote.
package checklist
