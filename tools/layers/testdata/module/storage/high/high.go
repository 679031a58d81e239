// Package high is a fixture.
package high

import "github.com/walherd/walherd/engine/low"

// Hello greets.
func Hello() { low.Hello() }
