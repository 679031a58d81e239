// Package layers holds the project's structural wishes as checks that the
// build runs: who may import whom, which package alone may import a library,
// and what no file may contain. It has no use outside of its own tests, which
// read the tree with go list and go/parser.
//
// Each rule is a function from what was read to violations, so that each can
// be shown to fail on made-up input: a rule that cannot fail is none. A rule
// that names a package which does not exist yet holds in advance.
package layers
