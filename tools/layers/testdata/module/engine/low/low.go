// Package low is a fixture.
package low

import "fmt"

// Hello greets.
func Hello() { fmt.Println("hello") }
